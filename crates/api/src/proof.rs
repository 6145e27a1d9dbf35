//! Proofs as they go over the wire.

use kedge_core::drill::{Boot, Depth, PartitionReport, TableKind};
use kedge_core::proof::{DiskProof, Outcome, Proof};
use kedge_wire::proof as wire;

use crate::error::clean;

pub(crate) fn proof(proof: &Proof) -> wire::Proof {
    let outcome = proof.outcome.as_ref();
    let reason = outcome.map(|outcome| clean(&outcome.reason)).filter(|text| !text.is_empty());
    wire::Proof {
        id: proof.id.to_string(),
        checkpoint_item_id: proof.item_id.to_string(),
        kind: proof.kind.as_str().to_owned(),
        status: proof.status.as_str().to_owned(),
        verdict: outcome.map(|outcome| outcome.verdict.as_str().to_owned()),
        reason,
        disks: outcome.map(disks).unwrap_or_default(),
        boot: outcome.and_then(|outcome| outcome.boot.as_ref()).map(boot),
        created_at: proof.created_at.to_string(),
        started_at: proof.started_at.map(|at| at.to_string()),
        finished_at: proof.finished_at.map(|at| at.to_string()),
    }
}

fn disks(outcome: &Outcome) -> Vec<wire::ProvedDisk> {
    outcome.disks.iter().map(disk).collect()
}

fn disk(disk: &DiskProof) -> wire::ProvedDisk {
    let report = disk.report.as_ref();
    let table = report.map(|report| match report.table {
        TableKind::None => "none",
        TableKind::Mbr => "mbr",
        TableKind::Gpt => "gpt",
    });
    let partitions = report.map(|report| report.partitions.iter().map(partition).collect());
    wire::ProvedDisk {
        backup_id: disk.backup.to_string(),
        read_bytes: disk.read_bytes,
        partition_table: table.map(str::to_owned),
        partitions: partitions.unwrap_or_default(),
        problems: report.map(|report| cleaned(&report.problems)).unwrap_or_default(),
    }
}

fn partition(partition: &PartitionReport) -> wire::ProvedPartition {
    let depth = match partition.depth {
        Depth::Recognised => "recognised",
        Depth::Described => "described",
        Depth::Walked => "walked",
    };
    wire::ProvedPartition {
        number: partition.number,
        size_bytes: partition.size_bytes,
        content: clean(&partition.content),
        depth: depth.to_owned(),
        files: partition.files,
        problems: cleaned(&partition.problems),
    }
}

fn boot(boot: &Boot) -> wire::ProvedBoot {
    let (booted, said, after_ms, console) = match boot {
        Boot::Booted { line, after_ms } => (true, line, *after_ms, Vec::new()),
        Boot::Failed { why, after_ms, console } => (false, why, *after_ms, cleaned(console)),
    };
    wire::ProvedBoot { booted, said: clean(said), after_ms, console }
}

fn cleaned(texts: &[String]) -> Vec<String> {
    texts.iter().map(|text| clean(text)).collect()
}
