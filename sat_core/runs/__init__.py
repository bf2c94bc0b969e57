"""One run's life, a file a verb: train, evaluate, curvature, landscape, audit; check and plan come before all of them.

A verb imports no other verb. What they share lies beneath: ``device`` (what computes), ``network`` (the trained model
and its predictions), ``sample`` (the images that are measured), ``data``, ``folder`` (a run's files: read, verified and
written), ``checkpoint``, ``files``.
"""
