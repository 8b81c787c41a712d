"""Restoring is running code as root: what a trusted key has not signed is refused, each case in its own words."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fakes.backends import Disk, MemoryBackend
from fakes.checkpoints import a_checkpoint, add, write
from fakes.trust import OwnKey
from fakes.values import a_page

from ckpt.codec.frame import Kind
from ckpt.codec.objects import SIGNATURE
from ckpt.codec.records import Signature
from ckpt.errors import ObjectCorrupt, ObjectMissing, StoreUnusable, Untrusted
from ckpt.store.compress import to_object
from ckpt.store.layout import SignatureName
from ckpt.store.opening import NO_KEYS, Keys, open_store
from ckpt.store.signing import make_signature
from ckpt.store.store import Store
from ckpt.units import CheckpointId, Nanoseconds

OWN, OTHER, THIRD = OwnKey(1), OwnKey(2), OwnKey(3)
FILES = {"pages-1.img": a_page(1)}
NOW = Nanoseconds(5)


@pytest.fixture
def disk() -> Disk:
    disk = Disk()
    open_store(MemoryBackend(disk), create=True, keys=Keys(trust=OWN))
    return disk


def opened(disk: Disk, trust: OwnKey | None = OWN) -> Store:
    keys = NO_KEYS if trust is None else Keys(trust=trust)
    return open_store(MemoryBackend(disk), create=False, keys=keys)


def put_signature(disk: Disk, signature: Signature, *, name: SignatureName | None = None) -> str:
    made = name or SignatureName(checkpoint=signature.checkpoint, public_key=signature.public_key)
    disk.objects[made.object] = to_object(Kind.SIGNATURE, SIGNATURE.encode(signature))
    return made.object


def unsigned(disk: Disk, created_ns: int = 1) -> CheckpointId:
    checkpoint, _ = write(opened(disk, None), FILES, created_ns=created_ns)
    assert opened(disk).signatures(checkpoint) == ()
    return checkpoint


def refusal(disk: Disk, checkpoint: CheckpointId, trust: OwnKey | None = OWN) -> Untrusted:
    with pytest.raises(Untrusted) as caught:
        opened(disk, trust).check_trust(checkpoint)
    assert caught.value.exit_code == 44
    assert checkpoint[:12] in caught.value.message
    return caught.value


def the_problem(disk: Disk) -> str:
    [problem] = opened(disk).verify(None).problems
    assert problem.slug == "corrupt"
    return problem.message


def test_what_this_host_writes_it_trusts(disk: Disk) -> None:
    checkpoint, _ = write(opened(disk), FILES)
    opened(disk).check_trust(checkpoint)
    [signature] = opened(disk).signatures(checkpoint)
    assert signature.public_key == OWN.signing_key().public.hex()
    assert opened(disk).verify(None).problems == ()


def test_what_nobody_signed_is_refused_with_the_command_that_vouches_for_it(disk: Disk) -> None:
    checkpoint = unsigned(disk)
    found = refusal(disk, checkpoint)
    assert "nobody has signed it" in found.message
    assert f"ckpt sign {checkpoint[:12]}" in found.advice
    opened(disk).sign(checkpoint)
    opened(disk).check_trust(checkpoint)


def test_what_an_unknown_key_signed_is_refused_with_the_command_that_trusts_it(disk: Disk) -> None:
    checkpoint, _ = write(opened(disk, OTHER), FILES)
    found = refusal(disk, checkpoint)
    assert "which this host does not trust" in found.message
    [key, *_] = OTHER.trusted()
    assert key.fingerprint in found.message
    assert f"ckpt trust add '{key.key_text}'" in found.advice
    assert opened(disk).verify(None).problems == ()


def test_one_trusted_key_among_others_is_enough(disk: Disk) -> None:
    checkpoint, _ = write(opened(disk, OTHER), FILES)
    opened(disk, THIRD).sign(checkpoint)
    assert "and 1 other(s)" in refusal(disk, checkpoint).message
    opened(disk, OwnKey(1, THIRD)).check_trust(checkpoint)
    opened(disk).sign(checkpoint)
    opened(disk).check_trust(checkpoint)


def test_a_host_without_keys_trusts_nobody(disk: Disk) -> None:
    checkpoint, _ = write(opened(disk), FILES)
    refusal(disk, checkpoint, None)
    with pytest.raises(StoreUnusable, match="without this host's keys"):
        opened(disk, None).sign(checkpoint)


def test_signing_twice_keeps_the_first_signature(disk: Disk) -> None:
    checkpoint, _ = write(opened(disk), FILES)
    [first] = opened(disk).signatures(checkpoint)
    assert opened(disk).sign(checkpoint) == first
    assert opened(disk).signatures(checkpoint) == (first,)


def test_what_is_not_there_cannot_be_signed(disk: Disk) -> None:
    with pytest.raises(ObjectMissing):
        opened(disk).sign(CheckpointId("ab" * 32))


def test_a_signature_that_was_given_to_another_checkpoint_is_refused(disk: Disk) -> None:
    """Replayed: what the trusted key signed is put beside what it did not sign."""
    signed, _ = write(opened(disk), FILES)
    evil = unsigned(disk, created_ns=2)
    [signature] = opened(disk).signatures(signed)
    put_signature(disk, signature, name=SignatureName(checkpoint=evil, public_key=signature.public_key))
    assert "nobody has signed it" in refusal(disk, evil).message
    assert f"it was given to the checkpoint {signed}" in the_problem(disk)
    opened(disk).check_trust(signed)


def test_a_signature_rewritten_for_another_checkpoint_is_refused(disk: Disk) -> None:
    signed, _ = write(opened(disk), FILES)
    evil = unsigned(disk, created_ns=2)
    [signature] = opened(disk).signatures(signed)
    put_signature(disk, replace(signature, checkpoint=evil))
    assert "nobody has signed it" in refusal(disk, evil).message
    assert "the key that it names has not made it" in the_problem(disk)


def test_a_signature_by_another_key_under_a_trusted_one_s_name_is_refused(disk: Disk) -> None:
    evil = unsigned(disk)
    by_other = make_signature(OTHER.signing_key(), evil, NOW)
    own = OWN.signing_key().public.hex()
    put_signature(disk, by_other, name=SignatureName(checkpoint=evil, public_key=own))
    assert "nobody has signed it" in refusal(disk, evil).message
    assert f"it names the key {by_other.public_key}" in the_problem(disk)
    put_signature(disk, replace(by_other, public_key=own))
    assert "nobody has signed it" in refusal(disk, evil).message
    assert "the key that it names has not made it" in the_problem(disk)


@pytest.mark.parametrize("bit", [0, 1, 255, 256, 300, 511])
def test_a_signature_with_a_flipped_bit_is_refused(disk: Disk, bit: int) -> None:
    checkpoint = unsigned(disk)
    made = make_signature(OWN.signing_key(), checkpoint, NOW)
    raw = bytearray.fromhex(made.signature)
    raw[bit // 8] ^= 1 << bit % 8
    put_signature(disk, replace(made, signature=raw.hex()))
    assert "nobody has signed it" in refusal(disk, checkpoint).message
    assert "the key that it names has not made it" in the_problem(disk)


def test_a_signature_whose_instant_was_changed_is_refused(disk: Disk) -> None:
    checkpoint = unsigned(disk)
    made = make_signature(OWN.signing_key(), checkpoint, NOW)
    put_signature(disk, replace(made, signed_ns=Nanoseconds(made.signed_ns + 1)))
    assert "nobody has signed it" in refusal(disk, checkpoint).message
    assert "the key that it names has not made it" in the_problem(disk)


@pytest.mark.parametrize("place", [3, 20, 40, 60, -1])
def test_a_damaged_signature_is_told_of_and_the_others_count(disk: Disk, place: int) -> None:
    checkpoint, _ = write(opened(disk, OTHER), FILES)
    opened(disk).sign(checkpoint)
    name = SignatureName(checkpoint=checkpoint, public_key=OTHER.signing_key().public.hex()).object
    content = bytearray(disk.objects[name])
    content[place] ^= 1
    disk.objects[name] = bytes(content)
    opened(disk).check_trust(checkpoint)
    assert "signature" in the_problem(disk)
    with pytest.raises(Untrusted, match="which this host does not trust"):
        opened(disk, THIRD).check_trust(checkpoint)


def test_a_tampered_manifest_under_a_signed_name_is_refused(disk: Disk) -> None:
    signed, _ = write(opened(disk), FILES)
    evil = unsigned(disk, created_ns=2)
    disk.objects[f"manifests/{signed}"] = disk.objects[f"manifests/{evil}"]
    with pytest.raises(ObjectCorrupt, match=f"the digest of its content is {evil}"):
        opened(disk).load(signed)


def test_a_tampered_placement_gives_no_other_bytes(disk: Disk) -> None:
    """It is not signed, and need not be believed: what it leads to must have the root of the manifest."""
    signed, _ = write(opened(disk), FILES)
    evil, _ = write(opened(disk, None), {"pages-1.img": a_page(2)}, created_ns=2)
    store = opened(disk)
    theirs = store._objects.placement_of(evil)
    ours = store._objects.placement_of(signed)
    forged = replace(ours, packs=theirs.packs, files=(replace(ours.files[0], layers=theirs.files[0].layers),))
    name = f"placements/{signed}@00000001"
    disk.objects[name] = to_object(Kind.PLACEMENT, forged.encode())
    store = opened(disk)
    [file] = store.load(signed).checkpoint.files
    with pytest.raises(ObjectCorrupt, match="give the root"):
        list(store.stream(signed, file))


def test_a_store_without_signatures_needs_the_word_of_this_host(disk: Disk) -> None:
    """Who can write to the store can change what it says of itself, and not what this host says of it."""
    checkpoint = unsigned(disk)
    refusal(disk, checkpoint)
    opened(disk, OwnKey(9)).set_signatures_required(False)
    refusal(disk, checkpoint)
    trust = OwnKey(1)
    opened(disk, trust).set_signatures_required(False)
    opened(disk, trust).check_trust(checkpoint)
    with pytest.raises(Untrusted):
        opened(disk, trust).check_signed(checkpoint)
    opened(disk, trust).set_signatures_required(True)
    refusal(disk, checkpoint, trust)


def test_the_signatures_go_with_the_checkpoint_and_never_without_it(disk: Disk) -> None:
    checkpoint, _ = write(opened(disk), FILES)
    opened(disk, OTHER).sign(checkpoint)
    kept, _ = write(opened(disk), FILES, created_ns=2)
    opened(disk).remove((checkpoint,))
    left = [name for name in disk.objects if name.startswith("signatures/")]
    assert [name.split("/")[1][:64] for name in left] == [kept]


def test_a_checkpoint_that_comes_with_signatures_keeps_them_and_is_not_signed_anew(disk: Disk) -> None:
    other = Disk()
    open_store(MemoryBackend(other), create=True, keys=Keys(trust=OTHER))
    checkpoint, _ = write(opened(other, OTHER), FILES)
    signatures = opened(other, OTHER).signatures(checkpoint)
    with opened(disk).writer() as writer:
        made = writer.commit(a_checkpoint(*add(writer, FILES), created_ns=1), signatures=signatures)
    assert made == checkpoint
    assert opened(disk).signatures(checkpoint) == signatures
    refusal(disk, checkpoint)
    opened(disk, OwnKey(1, OTHER)).check_trust(checkpoint)
