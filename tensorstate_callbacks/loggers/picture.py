"""A Matplotlib figure in; the summary of a picture for TensorBoard out."""

import io
import struct
from typing import TYPE_CHECKING, Any

from tensorstate_callbacks.errors import require
from tensorstate_callbacks.loggers.chart_layout import string_summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DPI = 100  # TensorBoard shows pictures of this size without scaling them down


def picture_summary(tag: str, figure: "Figure", description: str) -> Any:
    """Return the summary that shows a figure, as PNG.

    Args:
        tag: Its tag.
        figure: The figure.
        description: What TensorBoard says of it; Markdown.

    Raises:
        MissingExtraError: TensorBoard is not installed.
    """
    metadata = require(
        "tensorboard.plugins.image.metadata", extra="tensorboard", purpose="A picture"
    )
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=_DPI)
    png = file.getvalue()
    # A PNG begins with a signature and a header chunk: its size stands at bytes 16 to 23.
    width, height = struct.unpack(">II", png[16:24])
    return string_summary(
        tag,
        metadata.create_summary_metadata(display_name=tag, description=description),
        [str(width).encode(), str(height).encode(), png],
        shape=(3,),
    )
