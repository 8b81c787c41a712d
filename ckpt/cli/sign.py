"""`ckpt sign`."""

from __future__ import annotations

import click

from ckpt.cli import wiring
from ckpt.cli.call import Call, make_command
from ckpt.cli.documents import rfc3339
from ckpt.cli.parameters import ref_argument


@make_command("sign", example="ckpt sign web@latest")
@ref_argument
@click.pass_obj
def command(call: Call, ref: str) -> None:
    """Sign the checkpoint REF with this host's key.

    A dump signs its checkpoint by itself. Sign one that was made before there were signatures, or that came from
    elsewhere and you vouch for: every host that trusts this host's key restores it from then on.
    """
    from ckpt.store.publickey import fingerprint  # noqa: PLC0415 - it needs cryptography

    store = wiring.open_store(call.store, create=False)
    checkpoint = store.resolve(ref)
    signature = store.sign(checkpoint)
    signer = fingerprint(bytes.fromhex(signature.public_key))
    call.output.result(
        {"id": checkpoint, "fingerprint": signer, "signed": rfc3339(signature.signed_ns)},
        f"{checkpoint[:12]} is signed by {signer}",
        brief="",
    )
