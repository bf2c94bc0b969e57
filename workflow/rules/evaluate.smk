rule evaluate:
    input:
        f"{RUN}/run.json",
        f"{RUN}/model.safetensors",
    output:
        f"{RUN}/autoattack.csv",
        f"{RUN}/autoattack.json",
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
        digest=evaluation_digest,
    message:
        "AutoAttack on {wildcards.run}"
    shell:
        "exec python -m sat_core evaluate --study {params.study:q} --run {wildcards.run:q} > {log:q} 2>&1"
