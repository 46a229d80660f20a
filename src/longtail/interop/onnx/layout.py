"""Names in the ONNX files: inputs, outputs, metadata and, if there are several files, their names. Needs no PyTorch."""

IMAGES, THRESHOLDS = "images", "thresholds"
"""Inputs: pixels (B, 3, S, S), uint8; thresholds of the router (E - 1,), float32, by default those of the model"""

LOGITS, PROBABILITIES, EXPERTS_USED = "logits", "probabilities", "experts_used"
"""Outputs: (B, C) and (B, C), float32; (B,), int64"""

SHARED, SCORE, SUMS = "shared", "score", ("logit_sum", "ensemble_sum")
"""Between the experts: output of the trunk, probability (B,) of the router, running sums (B, C) over experts"""

BEFORE = {name: f"{name}_before" for name in SUMS}
"""Names of the sums as inputs of the next expert"""

FIRST_FILE, EXPERT_FILE = "first.onnx", "expert_{}.onnx"
"""Files of a model in parts: trunk and first expert, and each further expert by its number from 2"""
