"""Makes ready in the cache what takes long to make; without it the first test that needs it does.

What can not be had on this machine is told, and is no failure here: the tests that need it say the same.
"""

from __future__ import annotations

from tests.integration.debian import debian_root
from tests.integration.images import Unavailable, agent_sdk, agents_base, claude_base
from tests.integration.machine import python_packages

for make, what in (
    (claude_base, "The image with the real claude"),
    (agents_base, "The image with the other agents"),
    (agent_sdk, "The Python package claude-agent-sdk"),
    (debian_root, "Debian 13, for the engines of today and the whole machine,"),
    (python_packages, "What the tests import in that machine"),
):
    try:
        print(f"{what} is in {make()}.", flush=True)
    except Unavailable as reason:
        print(f"{what} can not be had: {reason}.", flush=True)
