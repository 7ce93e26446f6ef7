"""Makes small TensorFlow models in the folder named on the command line; runs in a process of its own, which has TensorFlow."""

import os
import sys
from pathlib import Path

os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
import keras
import tensorflow as tf

SIDE = 16


class Writes(tf.Module):  # type: ignore[misc]
    """A model that writes a file each time it is called."""

    @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32)])  # type: ignore[untyped-decorator]
    def answer(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        tf.io.write_file("written-by-the-model", tf.constant("x"))
        return {"y": x * 2}


def main(folder: Path) -> None:
    keras.utils.set_random_seed(1)
    net = keras.Sequential(
        [
            keras.Input((SIDE, SIDE, 3), name="picture"),
            keras.layers.Conv2D(6, 3, padding="same", activation="relu"),
            keras.layers.BatchNormalization(),
            keras.layers.MaxPooling2D(),
            keras.layers.Conv2D(4, 3, strides=2),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(3, activation="softmax"),
        ]
    )
    net.save(folder / "net.keras")
    net.save(folder / "net.h5")
    net.export(str(folder / "net"))
    (folder / "net.tflite").write_bytes(tf.lite.TFLiteConverter.from_keras_model(net).convert())
    picture = keras.Input((8, 8, 3))
    keras.Model(picture, keras.layers.Lambda(lambda x: x * 2)(picture)).save(folder / "lambda.keras")
    writes = Writes()
    tf.saved_model.save(writes, str(folder / "writes"), signatures={"serving_default": writes.answer})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
