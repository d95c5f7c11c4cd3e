"""What is done for each action of the decision table. Ties routing, sessions and the exchange together, over ASGI.

door        what a request takes of what is limited
incoming    a request as the actions see it
kernel      how any request is run
calls       the handshake, calls, batches
words       notifications and responses, from the client or by way of another worker
streams     GET and DELETE
background  tasks that no request waits for
roll        which sessions are live, here and elsewhere
service     the table from action to what does it
"""

from mcp_hybrid.service.door import Door, Place
from mcp_hybrid.service.incoming import Exchange, Timers
from mcp_hybrid.service.kernel import Kernel
from mcp_hybrid.service.service import Service

__all__ = ["Door", "Exchange", "Kernel", "Place", "Service", "Timers"]
