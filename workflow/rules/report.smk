rule table:
    input:
        lambda wildcards: sat.results_of(study(), wildcards.table, "train", "evaluate"),
    output:
        [f"{RESULTS}/tables/{{table}}{part}{suffix}" for part in PARTS for suffix in (".md", ".csv", ".tex")],
        [
            report(
                f"{RESULTS}/tables/{{table}}{part}.html",
                caption="../report/table.rst",
                category="Tables",
                labels={"table": f"{{table}}{part}"},
            )
            for part in PARTS
        ],
    log:
        f"{RESULTS}/logs/table/{{table}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/table/{{table}}.tsv"
    localrule: True  # seconds; a job with many inputs in a group would make planning quadratic
    conda:
        "../../envs/sat-core.yaml"
    params:
        study=STUDY_FILE,
    message:
        "table {wildcards.table}"
    shell:
        "exec python -P -m sat_core table --study {params.study:q} --table {wildcards.table:q} > {log:q} 2>&1"


rule compare:
    input:
        lambda wildcards: sat.results_of(study(), wildcards.table, "train", "evaluate"),
    output:
        multiext(f"{RESULTS}/tables/{{table}}{COMPARISONS}", ".md", ".csv", ".tex"),
        report(
            f"{RESULTS}/tables/{{table}}{COMPARISONS}.html",
            caption="../report/comparisons.rst",
            category="Tables",
            labels={"table": f"{{table}}{COMPARISONS}"},
        ),
    log:
        f"{RESULTS}/logs/compare/{{table}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/compare/{{table}}.tsv"
    localrule: True  # seconds; a job with many inputs in a group would make planning quadratic
    conda:
        "../../envs/sat-core.yaml"
    params:
        study=STUDY_FILE,
    message:
        "comparisons of {wildcards.table}"
    shell:
        "exec python -P -m sat_core compare --study {params.study:q} --table {wildcards.table:q} > {log:q} 2>&1"


rule figure:
    input:
        lambda wildcards: sat.drawn_from(study(), wildcards.table, wildcards.kind),
    output:
        report(
            f"{RESULTS}/figures/{{table}}-{{kind}}.png",
            caption="../report/figure.rst",
            category="Figures",
            labels={"table": "{table}", "figure": "{kind}"},
        ),
        f"{RESULTS}/figures/{{table}}-{{kind}}.pdf",
        f"{RESULTS}/figures/{{table}}-{{kind}}.csv",
    log:
        f"{RESULTS}/logs/figure/{{table}}-{{kind}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/figure/{{table}}-{{kind}}.tsv"
    localrule: True  # seconds; a job with many inputs in a group would make planning quadratic
    conda:
        "../../envs/sat-core.yaml"
    params:
        study=STUDY_FILE,
        caption=lambda wildcards: FIGURES[wildcards.kind].caption,
    message:
        "figure {wildcards.kind} of {wildcards.table}"
    shell:
        "exec python -P -m sat_core figure --study {params.study:q} --table {wildcards.table:q} --kind {wildcards.kind:q}"
        " > {log:q} 2>&1"


rule report:
    input:
        lambda wildcards: sat.targets(study()),
    output:
        report(f"{RESULTS}/report.html", caption="../report/report.rst", category="Report"),
    log:
        f"{RESULTS}/logs/report.log",
    benchmark:
        f"{RESULTS}/benchmarks/report.tsv"
    localrule: True  # seconds; a job with many inputs in a group would make planning quadratic
    conda:
        "../../envs/sat-core.yaml"
    params:
        study=STUDY_FILE,
    message:
        "report"
    shell:
        "exec python -P -m sat_core report --study {params.study:q} > {log:q} 2>&1"
