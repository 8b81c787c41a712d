"""What the configuration of ssh makes of an address, and what is refused before anything is sent."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest

from ckpt.errors import Unreachable, Usage
from ckpt.remote.address import parse_address
from ckpt.remote.ssh import SshConnection
from ckpt.remote.way import SshOptions, find_way


def test_an_alias_brings_name_port_user_keys_and_known_hosts(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.touch()
    config = tmp_path / "config"
    config.write_text(
        f"Host box\n HostName 10.1.2.3\n Port 2022\n User admin\n IdentityFile {key}\n IdentitiesOnly yes\n"
        f" UserKnownHostsFile {tmp_path}/known\n GlobalKnownHostsFile /dev/null\n ConnectTimeout 3\n"
    )
    way = find_way(parse_address("box"), SshOptions(config=str(config)))
    assert (way.host, way.port, way.user) == ("10.1.2.3", 2022, "admin")
    assert (way.identities, way.only_identities) == ((str(key),), True)
    assert (way.known_hosts, way.timeout_s) == ((f"{tmp_path}/known",), 3)
    # What the user writes wins.
    way = find_way(parse_address("root@box:22"), SshOptions(config=str(config), known_hosts=str(key)))
    assert (way.host, way.port, way.user, way.known_hosts) == ("10.1.2.3", 22, "root", (str(key),))


def test_without_a_configuration_the_defaults_of_ssh_hold(tmp_path: Path) -> None:
    way = find_way(parse_address("box"), SshOptions(config=str(tmp_path / "none")))
    assert (way.host, way.port, way.identities) == ("box", 22, ())
    assert way.known_hosts[0].endswith("/.ssh/known_hosts")
    assert "/etc/ssh/ssh_known_hosts" in way.known_hosts


@pytest.mark.parametrize("option", ["identity", "known_hosts"])
def test_a_file_that_is_named_and_not_there_is_told(option: str, tmp_path: Path) -> None:
    options = SshOptions(**{option: str(tmp_path / "none")}, config=str(tmp_path / "config"))
    with pytest.raises(Usage, match=f"--{option.replace('_', '-')}"):
        SshConnection(parse_address("localhost"), options)


def test_a_port_that_does_not_speak_ssh_is_unreachable(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def greet() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"220 mail here\r\n" * 200)

        thread = threading.Thread(target=greet)
        thread.start()
        options = SshOptions(config=str(tmp_path / "none"), connect_timeout_s=5)
        with pytest.raises(Unreachable) as caught:
            SshConnection(parse_address(f"root@127.0.0.1:{server.getsockname()[1]}"), options)
        thread.join()
    assert caught.value.remedy
    assert caught.value.exit_code == 51


def test_a_configuration_that_cannot_be_followed_is_told(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text("Host box\n CanonicalizeHostname yes\n")
    with pytest.raises(Usage, match=str(config)):
        find_way(parse_address("box"), SshOptions(config=str(config)))
