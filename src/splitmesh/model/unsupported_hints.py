"""What a person can do about a part of a model that is refused, in words."""

from __future__ import annotations

from splitmesh.errors import Reason
from splitmesh.model.refusals import MAX_OPSET, MIN_OPSET, Refusal

_RANDOM = "makes random numbers, so that parts could not be compared with the whole; take it out, or make it a constant"
_TEXT = "works on text; keep what reads or writes text outside of the model"
_SEQUENCE = "works on a sequence or an optional; give tensors, for instance Concat, Split or Where in its place"
_SIGNAL = "is not on the list; do this before the model, in the preprocessing, or write it with MatMul or Conv"
_TRAINING = "is for training; export the model in inference mode"

OPERATORS = {
    **dict.fromkeys(("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"), _RANDOM),
    **dict.fromkeys(("Bernoulli", "Multinomial"), _RANDOM),
    **dict.fromkeys(("StringConcat", "StringNormalizer", "StringSplit", "RegexFullMatch", "TfIdfVectorizer"), _TEXT),
    **dict.fromkeys(("SequenceAt", "SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert"), _SEQUENCE),
    **dict.fromkeys(("SequenceLength", "SequenceMap", "SplitToSequence", "ConcatFromSequence"), _SEQUENCE),
    **dict.fromkeys(("Optional", "OptionalGetElement", "OptionalHasElement"), _SEQUENCE),
    **dict.fromkeys(("DFT", "STFT", "MelWeightMatrix", "HannWindow", "HammingWindow", "BlackmanWindow"), _SIGNAL),
    **dict.fromkeys(("Gradient", "Momentum", "Adam", "Adagrad"), _TRAINING),
    **dict.fromkeys(("SoftmaxCrossEntropyLoss", "NegativeLogLikelihoodLoss"), _TRAINING),
    "ImageDecoder": "decodes pictures; a head does that itself: take it out and give --preprocess",
    "Scan": "has had its present form since opset 9; export again with a newer one",
    "Unique": "gives as many values as it finds; end the model before it, or use TopK",
    "AffineGrid": "is not on the list; compute the grid with MatMul, or export with opset 16 or older",
}
"""By operator of ONNX's own domain; one that is absent gets a general hint."""

_REASONS = {
    Reason.MODEL_EXTERNAL_DATA: "save the model in one file: onnx.save(model, path, save_as_external_data=False)",
    Reason.MODEL_TOO_LARGE: "use a smaller model or smaller pictures; half precision halves the constants",
    Reason.MODEL_CORRUPT: "export the model again; onnx.checker.check_model says more",
}


def hint_for(found: Refusal) -> str:
    """One sentence; never empty."""
    if found.kind == "opset":
        return f"export with an opset from {MIN_OPSET} to {MAX_OPSET}, or onnx.version_converter.convert_version(model, 17)"
    if found.kind == "operator" and found.reason is Reason.MODEL_OPERATOR_UNSUPPORTED:
        return _operator(found.name)
    if found.kind == "attribute":
        return "this operator has another form in the opset that the model states; export again with a newer opset"
    if found.reason is Reason.MODEL_SHAPE_UNKNOWN:
        return _shape(found)
    if found.kind in ("input", "output") and found.reason is Reason.MODEL_OPERATOR_UNSUPPORTED:
        return "models take and give tensors; end the model before the sequence or map is made (no ZipMap)"
    return _REASONS.get(found.reason, "export the model again in inference mode, for instance from a newer framework")


def _operator(name: str) -> str:
    if "." in name:
        domain = name.rpartition(".")[0]
        return (
            f"is of the domain {domain}, which only the runtime that has it can run; "
            "replace by operators of ONNX, or export without this framework's own optimisations"
        )
    return OPERATORS.get(name, "is not on the list; replace by operators that are, or end the model before it")


def _shape(found: Refusal) -> str:
    if found.kind == "input":
        return "export with a declared shape, the batch as the only dimension that varies"
    if found.kind == "size":
        return "the size follows from values; export with fixed sizes (a constant shape or target size)"
    return "export with static shapes, or run onnx.shape_inference.infer_shapes and save what it finds"
