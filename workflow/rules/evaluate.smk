rule evaluate:
    input:
        f"{RUN}/run.json",
        f"{RUN}/model.safetensors",
        of_run(lambda run: sat.shard_files(run)),
    output:
        f"{RUN}/autoattack.csv",
        f"{RUN}/autoattack.json",
        f"{RUN}/examples.npz",
    log:
        f"{RESULTS}/logs/evaluate/{{run}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/evaluate/{{run}}.tsv"
    group:
        of_run(lambda run: sat.sharing(run))
    conda:
        "../../envs/sat-core.yaml"
    threads: of_run(lambda run: run.resources.threads)
    resources:
        mem_mb=of_attempt("mem_mb", MAX_MEM_MB),
        runtime=of_attempt("evaluate_minutes", MAX_MINUTES),
        gres=of_run(lambda run: GRES if run.resources.gpus else ""),  # a text: jobs of a group would add up a number
    params:
        study=STUDY_FILE,
        verb="evaluate",
    message:
        "AutoAttack on {wildcards.run}"
    shell:
        "exec python -P -m sat_core {params.verb} --study {params.study:q} --run {wildcards.run:q} > {log:q} 2>&1"


use rule evaluate as evaluate_shard with:
    input:
        f"{RUN}/run.json",
        f"{RUN}/model.safetensors",
    output:
        temp(touch(f"{RUN}/shards/{{shard}}")),
    log:
        f"{RESULTS}/logs/evaluate/{{run}}-{{shard}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/evaluate/{{run}}-{{shard}}.tsv"
    params:
        study=STUDY_FILE,
        verb="evaluate --shard {shard}",
    message:
        "AutoAttack on {wildcards.run}, shard {wildcards.shard}"
