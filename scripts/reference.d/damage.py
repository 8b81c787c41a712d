"""images/damaged: one file of recipes for each kind of object, one recipe for each defect."""

from __future__ import annotations

import shutil

import damage_documents
import damage_manifests
import damage_packs
import damage_placements
import damage_places
import damage_sealed
import damage_v1
from making import MASTER
from recipes import Base
from reference.stores import IMAGES


def make_sets() -> None:
    shutil.rmtree(IMAGES / "damaged", ignore_errors=True)
    (IMAGES / "damaged").mkdir()
    head, sealed, old = Base("head"), Base("sealed", MASTER), Base("v1/head")
    count = sum(
        (
            damage_documents.config_sets(head),
            damage_documents.receipt_sets(head),
            damage_documents.signature_sets(head),
            damage_documents.tag_sets(head),
            damage_manifests.manifest_sets(head),
            damage_placements.placement_sets(head),
            damage_packs.pack_sets(head),
            damage_packs.index_sets(head),
            damage_places.lock_sets(head),
            damage_places.stray_sets(head),
            damage_sealed.sealed_sets(sealed, head),
            damage_v1.config_sets(old),
            damage_v1.manifest_sets(old),
            damage_v1.chunk_sets(old),
        )
    )
    print(f"images/damaged: {count} sets")
