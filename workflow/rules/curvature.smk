rule curvature:
    input:
        f"{RUN}/run.json",
        f"{RUN}/model.safetensors",
    output:
        f"{RUN}/curvature.json",
    log:
        f"{RESULTS}/logs/curvature/{{run}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/curvature/{{run}}.tsv"
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
    message:
        "curvature of {wildcards.run}"
    shell:
        "exec python -P -m sat_core curvature --study {params.study:q} --run {wildcards.run:q} > {log:q} 2>&1"
