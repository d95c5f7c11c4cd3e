"""Where the code of a served program runs: in place, or on an asyncio event loop in a thread of its own.

`program` is the seam that everything else uses, `loop` the thread and what crosses to it and back, `blocked` tells in
the log of a program that blocks its loop, `choice` decides which of the two a program needs.
"""
