"""Files that answer as a method does where hesitant is not installed: ONNX, ``torch.export``, AOTInductor.

``export`` is public. A method becomes one module whose answers have names (``graph_of`` and the graphs beside it, made
of the method's own functions); it is captured by ``torch.export`` (``capture``), written (``onnx_file``, ``pt2_file``)
and asked the example before the file takes its place. Users call it as :func:`hesitant.export`. Of a method it imports
what ``predict`` is made of, so that the graph and ``predict`` are one formula.
"""

from hesitant.integrations.export.exporting import export

__all__ = ["export"]
