rule evaluate_shard:
    input:
        f"{RUN}/run.json",
        f"{RUN}/model.safetensors",
    output:
        temp(touch(f"{RUN}/shards/{{shard}}")),
    log:
        f"{RESULTS}/logs/evaluate/{{run}}-{{shard}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/evaluate/{{run}}-{{shard}}.tsv"
    group:
        sharing
    conda:
        "../../envs/sat-core.yaml"
    threads: threads_of
    resources:
        mem_mb=memory_of,
        runtime=evaluation_minutes,
        gres=gpu_of,
    params:
        study=STUDY.path,
        digest=judged_digest,
    message:
        "AutoAttack on {wildcards.run}, shard {wildcards.shard}"
    shell:
        "exec python -m sat_core evaluate --study {params.study:q} --run {wildcards.run:q} --shard {wildcards.shard:q}"
        " > {log:q} 2>&1"


rule evaluate:
    input:
        f"{RUN}/run.json",
        f"{RUN}/model.safetensors",
        shard_files,
    output:
        f"{RUN}/autoattack.csv",
        f"{RUN}/autoattack.json",
        f"{RUN}/examples.npz",
    log:
        f"{RESULTS}/logs/evaluate/{{run}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/evaluate/{{run}}.tsv"
    group:
        sharing
    conda:
        "../../envs/sat-core.yaml"
    threads: threads_of
    resources:
        mem_mb=memory_of,
        runtime=evaluation_minutes,
        gres=gpu_of,
    params:
        study=STUDY.path,
        digest=judged_digest,
    message:
        "AutoAttack on {wildcards.run}"
    shell:
        "exec python -m sat_core evaluate --study {params.study:q} --run {wildcards.run:q} > {log:q} 2>&1"
