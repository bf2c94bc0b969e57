rule train:
    input:
        of_run(lambda run: f"{RESULTS}/data/{run.dataset}.json"),
    output:
        f"{RUN}/run.json",
        f"{RUN}/model.safetensors",
        f"{RUN}/history.csv",
    log:
        f"{RESULTS}/logs/train/{{run}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/train/{{run}}.tsv"
    priority: 1  # the longest jobs first: else one of them may be left alone at the end
    group:
        of_run(lambda run: sat.sharing(run))
    conda:
        "../../envs/sat-core.yaml"
    threads: of_run(lambda run: run.resources.threads)
    resources:
        mem_mb=of_attempt("mem_mb", MAX_MEM_MB),
        runtime=of_attempt("train_minutes", MAX_MINUTES),
        gres=of_run(lambda run: GRES if run.resources.gpus else ""),  # a text: jobs of a group would add up a number
    params:
        study=STUDY_FILE,
        whole=of_run(lambda run: "--whole" if sat.sharing(run) and workflow.local_exec else ""),
    message:
        "train {wildcards.run}"
    shell:
        "exec python -P -m sat_core train --study {params.study:q} --run {wildcards.run:q} {params.whole}"
        " > {log:q} 2>&1"
