"""`ckpt host setup`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ckpt.cli.call import Call, make_command
from ckpt.cli.documents import plain
from ckpt.cli.output import on_one_line
from ckpt.cli.progress import telling
from ckpt.model.checks import State
from ckpt.units import human_bytes

if TYPE_CHECKING:
    from ckpt.host.bundle import Bundle
    from ckpt.remote.installing import Installation, Offer, Release


@make_command("setup", example="ckpt host setup root@web2")
@click.argument("host", metavar="[USER@]HOST[:PORT]")
@click.option(
    "--prefix",
    metavar="PATH",
    default="/opt/ckpt",
    show_default=True,
    help="Where it is installed there. The init of jobs is always in /opt/ckpt/libexec.",
)
@click.option("--force", is_flag=True, help="Install it anew, also where it is there already.")
@click.option("--dry-run", "dry_run", is_flag=True, help="Say what would be sent; change nothing there.")
@click.option(
    "--identity", metavar="FILE", help="The private key to log in with, instead of those in ~/.ssh."
)
@click.option(
    "--known-hosts",
    "known_hosts",
    metavar="FILE",
    help="The keys of hosts that are trusted, instead of ~/.ssh/known_hosts and the system's.",
)
@click.pass_obj
def command(call: Call, /, host: str, **given: Any) -> None:
    """Install this ckpt on HOST over SSH: the program, its Python packages, its CRIU and the init of jobs.

    HOST needs a Python of the same minor version and machine type, and nothing from the internet. What was installed
    there before stays until the new one has dumped and restored a process there.
    """
    from ckpt.host import bundle  # noqa: PLC0415
    from ckpt.remote.address import parse_address  # noqa: PLC0415
    from ckpt.remote.installing import INIT_PLACE, check_prefix, install  # noqa: PLC0415
    from ckpt.remote.ssh import SshConnection  # noqa: PLC0415
    from ckpt.remote.way import SshOptions  # noqa: PLC0415

    address = parse_address(host)
    prefix = check_prefix(given["prefix"])
    options = SshOptions(identity=given["identity"] or "", known_hosts=given["known_hosts"] or "")
    with telling(call.output) as announce:
        announce("reading what is to be sent")
        ours = bundle.collect()
        offer = _offer(ours)
        announce(f"asking {host}")
        with SshConnection(address, options) as connection:
            done = install(
                connection,
                offer,
                lambda sink: ours.send(sink, announce),
                announce,
                prefix=prefix,
                force=given["force"],
                dry_run=given["dry_run"],
            )
    if done.has_other_init:
        call.output.warn(
            f"{host} has another {INIT_PLACE}, of the name {offer.init_name}: jobs that began here cannot be restored "
            "there. If no job and no checkpoint there needs it, remove that file, and set the host up again."
        )
    call.output.result(
        _document(host, prefix, ours, offer.release, done, dry_run=given["dry_run"]),
        _text(host, prefix, ours, offer.release, done),
        brief="",
    )


def _offer(ours: Bundle) -> Offer:
    from ckpt.host.bundle import PYTHON_TAG  # noqa: PLC0415
    from ckpt.remote.installing import Offer, Release  # noqa: PLC0415

    init = next(file for file in ours.files if file.path == f"libexec/{ours.init_name}")
    return Offer(
        release=Release(version=ours.version, digest=ours.digest),
        init_name=ours.init_name,
        init_digest=init.digest,
        python_tag=PYTHON_TAG,
    )


def _document(
    host: str, prefix: str, ours: Bundle, release: Release, done: Installation, *, dry_run: bool
) -> dict[str, Any]:
    return {
        "host": host,
        "version": release.version,
        "build": release.build,
        "prefix": prefix,
        "python": {"path": done.python.path, "version": done.python.version},
        "criu_version": ours.criu_version,
        "was": None if done.was is None else {"version": done.was.version, "build": done.was.build},
        "up_to_date": done.is_current,
        "installed": done.is_new,
        "dry_run": dry_run,
        "files": len(ours.files),
        "bytes": ours.size_bytes,
        "sent_bytes": done.sent_bytes,
        "checks": [plain(check) for check in done.checks],
    }


def _text(host: str, prefix: str, ours: Bundle, release: Release, done: Installation) -> str:
    ckpt = f"ckpt {release.version}, build {release.build}, with CRIU {ours.criu_version}"
    size = f"{len(ours.files)} files, {human_bytes(ours.size_bytes)}"
    was = f" (now: {done.was.version}, build {done.was.build})" if done.was else ""
    if done.is_new:
        lines = [f"{ckpt}, is installed on {host}, in {prefix}: {human_bytes(done.sent_bytes)} were sent"]
        for check in done.checks:
            if check.state is not State.OK:
                lines.append(f"  {check.state.value} {check.name}: {on_one_line(check.detail)}")
                lines.append(f"    → {on_one_line(check.remedy)}")
        return "\n".join(lines)
    if done.is_current:
        return f"{ckpt}, is on {host} already, in {prefix}"
    return f"{ckpt}, would be installed on {host}{was}, in {prefix}: {size} before compression"
