"""Building releases: a float model becomes the INT8 model, golden inputs and report of a release.

What decides is pure (`recipe`, `exclusion`, `guard`, `levels`); what needs onnx, torch or optimum runs in a
child with an environment of its own (`environment`, `worker`). The controller imports neither.
"""
