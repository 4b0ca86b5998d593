"""claude-agent-sdk over a container."""

try:
    from container_runner.sdk.transport import ContainerTransport as ContainerTransport
except ModuleNotFoundError as error:
    if error.name != "claude_agent_sdk":
        raise
    message = "container_runner.sdk needs claude-agent-sdk. Type: pip install 'agent-container-runner[sdk]'"
    raise ModuleNotFoundError(message, name=error.name) from None
