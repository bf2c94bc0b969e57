rule landscape:
    input:
        f"{RUN}/run.json",
        f"{RUN}/model.safetensors",
    output:
        f"{RUN}/landscape.npz",
        f"{RUN}/landscape.json",
    log:
        f"{RESULTS}/logs/landscape/{{run}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/landscape/{{run}}.tsv"
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
        "landscape of {wildcards.run}"
    shell:
        "exec python -P -m sat_core landscape --study {params.study:q} --run {wildcards.run:q} > {log:q} 2>&1"
