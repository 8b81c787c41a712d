"""Rules over needs: the CPU, feature by feature and never by its name.

A program looks for features once, when it starts, and goes on using them: on a CPU that lacks one it dies of SIGILL.

Rules: what only the kernel uses, and what is no instruction at all, does not count. What is not known counts.
Source: arch/x86/include/asm/cpufeatures.h of Linux (the words in /proc/cpuinfo); arch/arm64/kernel/cpuinfo.c.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final

from ckpt.host.hostfacts import read_host_facts
from ckpt.host.preflight.needs_rule import Here, NeedRule
from ckpt.host.preflight.rule import Found
from ckpt.model.findings import Severity
from ckpt.model.needs import Needs

_OF_NO_PROGRAM: Final = (
    # Paging, interrupts, protection, machine checks.
    "vme de pse pae mce apic mtrr pge mca pat pse36 acpi ss ht tm pbe syscall nx pdpe1gb lm pcid x2apic "
    "smep smap umip ospke la57 invpcid sep msr dtes64 monitor ds_cpl est tm2 cid xtpr pdcm dca osxsave "
    "extd_apicid xsaves erms fsrm fzrm fsrs fsrc pks split_lock_detect bus_lock_detect ibt shstk fred "
    "lkgs wrmsrns uai "
    # How well it is timed, or described.
    "constant_tsc nonstop_tsc nonstop_tsc_s3 tsc_known_freq tsc_reliable tsc_adjust tsc_deadline_timer "
    "rep_good nopl xtopology cpuid aperfmperf arch_perfmon pebs bts dts arat ida pln pts hwp hwp_notify "
    "hwp_act_window hwp_epp hwp_pkg_req epb intel_pt hfi dtherm cpb amd_dcm topoext cmp_legacy cr8_legacy "
    "extapic osvw ibs skinit wdt nodeid_msr perfctr_core perfctr_nb perfctr_llc bpext ptsc mwait tce "
    "hw_pstate proc_feedback cppc irperf xsaveerptr amd_lbr_v2 amd_lbr_pmc_freeze perfmon_v2 cqm cqm_llc "
    "cqm_occup_llc cqm_mbm_total cqm_mbm_local rdt_a cat_l2 cat_l3 cdp_l2 cdp_l3 mba smba bmec "
    "architectural_lbr arch_lbr arch_capabilities core_capabilities hybrid_cpu ring3mwait acc_power "
    "pconfig overflow_recov succor smca debug_swap "
    # Virtual machines.
    "hypervisor vmx svm smx vmmcall tpr_shadow vnmi flexpriority ept vpid ept_ad npt lbrv svm_lock "
    "nrip_save tsc_scale vmcb_clean flushbyasid decodeassists pausefilter pfthreshold avic "
    "v_vmsave_vmload vgif x2avic v_spec_ctrl sev sev_es sev_snp sme tdx_guest sgx sgx_lc "
    # Workarounds.
    "pti kaiser ibrs ibpb stibp ssbd ibrs_enhanced ibpb_exit_to_user retpoline virt_ssbd amd_ssb_no "
    "amd_ibpb amd_stibp amd_ssbd spec_ctrl spec_ctrl_ssbd intel_stibp intel_ppin amd_ppin md_clear "
    "flush_l1d tsx_force_abort rtm_always_abort srbds_ctrl sbpb auto_ibrs invlpgb bhi_ctrl tsa_sq_no "
    "tsa_l1_no "
)
"""Words of /proc/cpuinfo that no program can depend on."""

_IGNORED: Final = frozenset(_OF_NO_PROGRAM.split())


def _architecture(needs: Needs, _here: Here) -> Iterator[Found]:
    machine = os.uname().machine
    if needs.architecture and needs.architecture != machine:
        yield Found(
            pid=None,
            subject=needs.architecture,
            message=f"this host is {machine}, and the memory of the workload holds code for {needs.architecture}",
        )


def _features(needs: Needs, _here: Here) -> Iterator[Found]:
    if needs.architecture not in ("", os.uname().machine):
        return
    present = frozenset(read_host_facts("", "").cpu_features)
    for feature in missing_features(needs.cpu_features, present):
        yield Found(
            pid=None,
            subject=feature,
            message=f"this host's CPU lacks {feature}, which the workload may use",
        )


def missing_features(needed: tuple[str, ...], present: frozenset[str]) -> tuple[str, ...]:
    """The features that programs may use and that are not there; none where this host does not tell its own."""
    if not present:
        return ()
    return tuple(sorted(set(needed) - present - _IGNORED))


RULES: Final = (
    NeedRule(
        name="cpu-architecture",
        severity=Severity.BLOCKER,
        title="Another architecture",
        effect="Nothing of it could run.",
        remedy="Choose a host of the same architecture.",
        find=_architecture,
    ),
    NeedRule(
        name="cpu-feature",
        severity=Severity.BLOCKER,
        title="Instructions that this host's CPU lacks",
        effect="The workload dies of SIGILL where it uses one, at once or much later; CRIU refuses those of the FPU's state.",
        remedy="Choose a host with this feature, or start the workload where the CPU lacks it.",
        find=_features,
    ),
)
