use rule evaluate as curvature with:
    input:
        f"{RUN}/run.json",
        f"{RUN}/model.safetensors",
    output:
        f"{RUN}/curvature.json",
    log:
        f"{RESULTS}/logs/curvature/{{run}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/curvature/{{run}}.tsv"
    params:
        study=STUDY_FILE,
        verb="curvature",
    message:
        "curvature of {wildcards.run}"
