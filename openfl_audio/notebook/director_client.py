"""Connection of a notebook to the director."""

from openfl.protocols import director_pb2_grpc
from openfl.transport.grpc import director_client

from openfl_audio.notebook.director_calls import DirectorCalls
from openfl_audio.protocol.certificates import Credentials


class DirectorClient(DirectorCalls, director_client.DirectorClient):
    """The calls of this project, and OpenFL's client of the director, over the same channel."""

    def __init__(self, client_id: str, address: str, credentials: Credentials | None) -> None:
        """Open a channel to the director at `address`, "HOST:PORT"; without credentials TLS is off."""
        DirectorCalls.__init__(self, client_id, address, credentials)
        self.stub = director_pb2_grpc.DirectorStub(self.channel)
