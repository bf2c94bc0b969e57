use rule evaluate as landscape with:
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
    params:
        study=STUDY_FILE,
        verb="landscape",
    message:
        "landscape of {wildcards.run}"
