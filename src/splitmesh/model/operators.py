"""Which ONNX operators a model may use.

An allow-list: operators are functions of their inputs, deterministic, and finish in a time bounded by the sizes of
their tensors. So no control flow (``Loop``, ``Scan`` and ``If`` can run for ever or hide a graph), no random numbers
(head and tail could not be compared with the whole), no strings, sequences, optionals or image decoders, no custom
domains.
"""

from __future__ import annotations

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
    Tan Tanh ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze Where Xor
"""

_ML = "Binarizer Imputer LinearRegressor Normalizer Scaler"

_MICROSOFT = """
    BiasGelu DequantizeLinear FastGelu FusedConv FusedGemm FusedMatMul Gelu QGemm QLinearAdd QLinearAveragePool
    QLinearConcat QLinearGlobalAveragePool QLinearLeakyRelu QLinearMul QLinearSigmoid QLinearSoftmax QuantizeLinear
    QuickGelu
"""
"""What onnxruntime's quantiser and its transformer tools write for vision models."""

ALLOWED = {
    domain: frozenset(names.split())
    for domain, names in (("", _ONNX), ("ai.onnx.ml", _ML), ("com.microsoft", _MICROSOFT))
}
"""Operator names by domain."""

SIZE_FROM_VALUES = frozenset(
    ("CenterCropPad", "Col2Im", "ConstantOfShape", "Expand", "MaxUnpool", "OneHot", "Pad", "Range", "Resize", "Tile")
)
"""Operators that make a tensor as large as a value says; their output size must be known before they may run."""


def canonical_domain(domain: str) -> str:
    """The default domain has two spellings."""
    return "" if domain == "ai.onnx" else domain


def is_allowed(domain: str, op_type: str) -> bool:
    """Whether a node of this type may be in a model."""
    return op_type in ALLOWED.get(canonical_domain(domain), frozenset())
