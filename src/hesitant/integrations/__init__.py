"""One file an ecosystem: training loops, formats and engines that a model goes into.

A user imports what they need, ``from hesitant.integrations.lightning import ...``: each file is a door of its own, for
each needs packages (an extra of the same name installs them) that no other does, and none is imported unless it is
used. Nothing in the library imports from here, the command excepted.
"""
