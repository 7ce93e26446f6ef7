"""Which ONNX operators a model may use.

An allow-list: operators are functions of their inputs and deterministic. All but ``Loop`` finish in a time bounded by
the sizes of their tensors; a ``Loop`` may run for ever, so a model that has one runs under the runtime's watchdog. No
random numbers (head and tail could not be compared with the whole), no strings, sequences, optionals or image decoders,
no custom domains. What the bodies of control flow hold must be on the list too.
"""

from __future__ import annotations

from onnx import NodeProto

_ONNX = """
    Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh Attention AveragePool BatchNormalization
    BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast CastLike Ceil Celu CenterCropPad Clip Col2Im
    Compress Concat Constant ConstantOfShape Conv ConvInteger ConvTranspose Cos Cosh CumSum DeformConv
    DepthToSpace DequantizeLinear Det Div Dropout DynamicQuantizeLinear Einsum Elu Equal Erf Exp Expand
    EyeLike Flatten Floor GRU Gather GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalLpPool
    GlobalMaxPool Greater GreaterOrEqual GridSample GroupNormalization HardSigmoid HardSwish Hardmax Identity
    InstanceNormalization IsInf IsNaN LRN LSTM LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax
    LpNormalization LpPool MatMul MatMulInteger Max MaxPool MaxRoiPool MaxUnpool Mean
    MeanVarianceNormalization Min Mish Mod Mul Neg NonMaxSuppression NonZero Not OneHot Or PRelu Pad Pow
    QLinearConv QLinearMatMul QuantizeLinear RMSNormalization RNN Range Reciprocal ReduceL1 ReduceL2
    ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu
    Reshape Resize ReverseSequence RoiAlign RotaryEmbedding Round ScatterElements ScatterND Selu Shape Shrink
    Sigmoid Sign Sin Sinh Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Swish
    Tan Tanh ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze Upsample Where Xor
"""

CONTROL_FLOW = frozenset(("If", "Loop", "Scan"))
"""Operators with bodies; each runs on one side of a cut as a whole."""

_ML = "Binarizer Imputer LinearRegressor Normalizer Scaler"

_MICROSOFT = """
    BiasGelu DequantizeLinear FastGelu FusedConv FusedGemm FusedMatMul Gelu QGemm QLinearAdd QLinearAveragePool
    QLinearConcat QLinearGlobalAveragePool QLinearLeakyRelu QLinearMul QLinearSigmoid QLinearSoftmax QuantizeLinear
    QuickGelu
"""
"""What onnxruntime's quantiser and its transformer tools write for vision models."""

MICROSOFT = "com.microsoft"
"""The runtime's own domain; ONNX has no shape rules for it."""

ALLOWED = {
    domain: frozenset(names.split())
    for domain, names in (
        ("", f"{_ONNX} {' '.join(CONTROL_FLOW)}"),
        ("ai.onnx.ml", _ML),
        (MICROSOFT, _MICROSOFT),
    )
}
"""Operator names by domain."""

_SIZED = "CenterCropPad Col2Im ConstantOfShape Expand MaxUnpool OneHot Pad Range Resize Tile Upsample"

SIZE_FROM_VALUES = frozenset(_SIZED.split())
"""Operators that make a tensor as large as a value says; their output size must be known before they may run."""


def canonical_domain(domain: str) -> str:
    """The default domain has two spellings."""
    return "" if domain == "ai.onnx" else domain


def is_allowed(domain: str, op_type: str) -> bool:
    """Whether a node of this type may be in a model."""
    return op_type in ALLOWED.get(canonical_domain(domain), frozenset())


def type_name(node: NodeProto) -> str:
    """What kind of node it is, for people: ``Conv``, ``com.microsoft.Gelu``."""
    return ".".join(filter(None, (canonical_domain(node.domain), node.op_type)))
