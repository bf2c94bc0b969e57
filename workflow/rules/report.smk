rule table:
    input:
        table_inputs,
    output:
        multiext(f"{RESULTS}/tables/{{table}}", ".md", ".csv", ".tex", ".html"),
        multiext(f"{RESULTS}/tables/{{table}}-attacks", ".md", ".csv", ".tex", ".html"),
        multiext(f"{RESULTS}/tables/{{table}}-cost", ".md", ".csv", ".tex", ".html"),
    log:
        f"{RESULTS}/logs/table/{{table}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/table/{{table}}.tsv"
    localrule: True  # seconds; a job with many inputs in a group would make planning quadratic
    conda:
        "../../envs/sat-core.yaml"
    params:
        study=STUDY.path,
        digest=table_digest,
    message:
        "table {wildcards.table}"
    shell:
        "exec python -m sat_core table --study {params.study:q} --table {wildcards.table:q} > {log:q} 2>&1"


rule figure:
    input:
        figure_inputs,
    output:
        multiext(f"{RESULTS}/figures/{{table}}-{{kind}}", ".png", ".pdf"),
    log:
        f"{RESULTS}/logs/figure/{{table}}-{{kind}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/figure/{{table}}-{{kind}}.tsv"
    localrule: True  # seconds; a job with many inputs in a group would make planning quadratic
    conda:
        "../../envs/sat-core.yaml"
    params:
        study=STUDY.path,
        digest=figure_digest,
    message:
        "figure {wildcards.kind} of {wildcards.table}"
    shell:
        "exec python -m sat_core figure --study {params.study:q} --table {wildcards.table:q} --kind {wildcards.kind:q} > {log:q} 2>&1"
