"""`trapline state`: one sandbox as the OCI runtime specification describes it (runtime.md, "State")."""

from __future__ import annotations

from trapline.sentry.cli.flags import VerbError
from trapline.sentry.cli.verb import Verb, find, print_json

TYPE_CHECKING = False  # not imported: typing costs half as much as Python's own start
if TYPE_CHECKING:
    from typing import Any

OCI_VERSION = "1.0.2"  # oci.OCI_VERSION, which is not imported here: state must start fast


def _state(values: dict[str, Any], words: list[str]) -> int:
    from trapline.sentry.control.records import RecordError

    record = find(values, words[0])
    try:
        status = record.status()
        if status == "stopped" and record.is_live():
            from trapline.sentry.cli.lifecycle import await_end

            await_end(record, 1)  # its exit status is about to be written down
            record = find(values, words[0])
    except RecordError as error:
        raise VerbError(str(error)) from None
    found = {
        "ociVersion": OCI_VERSION,
        "id": record.id,
        "status": status,
        "pid": 0 if status == "stopped" else record.pid,
        "bundle": record.info.get("bundle", ""),
        "annotations": record.info.get("annotations", {}),
        "created": _rfc3339(record.info.get("created", 0)),
    }
    if status == "stopped":
        found["exitStatus"] = record.info.get("exit_status", -1)
    print_json(found)
    return 0


def _rfc3339(seconds: float) -> str:
    from time import gmtime, strftime

    return strftime("%Y-%m-%dT%H:%M:%S", gmtime(seconds)) + f".{int(seconds % 1 * 1e6):06d}Z"


VERBS = (
    Verb(
        "state",
        "ID",
        "Print the state of a sandbox as JSON: its status is creating, created, running, paused or stopped. The pid is "
        "that of its sentry on the host, which ends with the exit status of the first program. A stopped one has an "
        "exitStatus, -1 if its sentry was killed.",
        (),
        _state,
        examples="  trapline state box\n",
    ),
)
