"""The envoy's end of a worker's link: it does what the worker may, in the envoy's name and by the site's rules."""

import logging
import os
import threading
from collections.abc import Mapping
from typing import Any

import grpc
from pydantic import ValidationError

from openfl_audio.envoy.limits import RoundClock
from openfl_audio.envoy.link import Link, Request, SharedMemory
from openfl_audio.envoy.policy import plain_reason
from openfl_audio.envoy.rounds_client import RoundsClient
from openfl_audio.errors import DirectorRefusedError, EndedError, PolicyError, TensorFormatError, WireError
from openfl_audio.protocol.codec import describe_faults
from openfl_audio.protocol.tensors import Header

logger = logging.getLogger("envoy")


class Relay(threading.Thread):
    """Answers the requests of a worker, one after the other, until the link is closed."""

    def __init__(self, link: Link, client: RoundsClient, clock: RoundClock) -> None:
        super().__init__(daemon=True, name="relay")
        self._link, self._client, self._clock = link, client, clock
        self._memory = SharedMemory()

    def run(self) -> None:
        """Answer requests."""
        try:
            while True:
                message, blob, unwanted = self._link.receive()
                for file in unwanted:
                    os.close(file)
                answer, data = self._answer(message, blob)
                files = []
                if self._memory.is_new:
                    self._memory.is_new = False
                    answer["memory"] = len(self._memory.buffer)
                    files = [self._memory.file] if self._memory.file is not None else []
                self._link.send(answer, data, files)
        except (EOFError, OSError, EndedError):
            pass  # the worker has ended, or the envoy ends it
        except ValueError as error:
            logger.warning("a worker's message cannot be read: %s", error)
        finally:
            # Whatever ended this thread, the worker must not wait for an answer of it.
            self._link.close()
            self._memory.close()

    def _answer(self, message: Mapping[str, Any], blob: bytes) -> tuple[dict[str, Any], bytes]:
        try:
            request = Request.model_validate(message)
            return self._do(request, blob)
        except DirectorRefusedError as error:
            return {"refused": str(error)}, b""
        except PolicyError as error:
            return {"forbidden": str(error)}, b""
        except ValidationError as error:
            return {"failed": describe_faults(error)}, b""
        except (TensorFormatError, WireError) as error:
            return {"failed": str(error)}, b""
        except OSError as error:  # of the envoy's own files and memory; the link's is not raised here
            logger.error("a request of a worker failed: %s", error)
            return {"failed": f"the envoy cannot read or write: {plain_reason(error)}"}, b""
        except grpc.RpcError as error:  # of a report of progress, which is not repeated
            return {"failed": str(error.details())}, b""

    def _do(self, request: Request, blob: bytes) -> tuple[dict[str, Any], bytes]:
        if request.call == "tasks":
            self._clock.end()
            answer = self._client.get_tasks()
            names = ("name", "function_name", "task_type", "apply_local")
            tasks = [{name: getattr(task, name) for name in names} for task in answer.tasks]
            if tasks:
                self._clock.hand_out(len(tasks))
            return {"tasks": tasks, "round": answer.round_number, "quit": answer.quit}, b""
        if request.call == "model":
            packed = self._client.get_model(self._memory.allocate).pack()
            self._clock.begin()
            return {}, packed
        if request.call == "memory":
            self._clock.end()
            self._memory.allocate(self._client.bounded(request.n_bytes))
            return {}, b""
        if request.call == "update":
            self._clock.end()
            self._client.send_update(request.round, request.results, Header.unpack(blob), self._memory.buffer)
            return {}, b""
        return {"seconds": self._client.report(request.progress)}, b""
