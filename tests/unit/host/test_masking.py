"""What is left out of a text."""

from __future__ import annotations

from ckpt.host.masking import MASK, Masking, command_line


def test_words_of_a_command_line_are_masked_wherever_they_stand() -> None:
    masking = Masking()
    masking.add_command_line(
        ["/usr/bin/server", "--user=hedwig-0815", "orange-tree", "/etc/passwd", "8080", "-v"]
    )
    masking.add_environment(["CITY=Reykjavik-1", "SHLVL=1", "HOME=/root"])
    text = (
        "Reykjavik-1: /usr/bin/server --user=hedwig-0815 hedwig-0815 'orange-tree' /etc/passwd 8080 /root 1"
    )
    assert masking.masked(text) == f"{MASK}: /usr/bin/server {MASK} {MASK} '{MASK}' /etc/passwd 8080 /root 1"


def test_words_are_found_in_json_too() -> None:
    masking = Masking()
    masking.add_command_line(["x", 'say "hällo"'])
    assert masking.masked(r'"say \"h\u00e4llo\""') == f'"{MASK}"'


def test_what_is_named_a_secret_is_masked_though_command_lines_are_wanted() -> None:
    words = [
        "serve",
        "--password",
        "hunter2",
        "--api-key=abc",
        "DB_PASSWORD=xyz",
        "--keep",
        "3",
        "--tokens",
        "t",
    ]
    assert command_line(words) == (
        "serve", "--password", MASK, f"--api-key={MASK}", f"DB_PASSWORD={MASK}", "--keep", "3", "--tokens", MASK,
    )  # fmt: skip


def test_passphrases_are_masked_in_any_text() -> None:
    assert (
        Masking().masked("cifs user=a,password=hunter2,ro; token: abc")
        == f"cifs user=a,password={MASK},ro; token: {MASK}"
    )


def test_passphrases_alone_are_masked_where_command_lines_are_wanted() -> None:
    masking = Masking()
    masking.add_passphrases(
        ["serve", "--user", "hedwig-0815", "--password", "correct horse", "API_TOKEN=123abc"]
    )
    assert masking.masked("hedwig-0815 correct horse 123abc") == f"hedwig-0815 {MASK} {MASK}"
