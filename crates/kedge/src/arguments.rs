//! What can be typed. Never a secret: the arguments of a process are public.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// Backs up servers, restores them, and answers whether a backup can be restored.
#[derive(Debug, Parser)]
#[command(name = "kedge", version)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the service.
    Serve(OfConfig),
    /// Show the whole job on two made-up servers: back up, ask, restore, compare.
    Demo(DemoOptions),
    /// Look at a configuration.
    Config {
        #[command(subcommand)]
        verb: ConfigVerb,
    },
    /// Prepare entries of the users file.
    User {
        #[command(subcommand)]
        verb: UserVerb,
    },
    /// Look after the repositories of backups by hand.
    Repo {
        #[command(subcommand)]
        verb: RepoVerb,
    },
    /// Take receipts out of the catalogue, and check them.
    Evidence {
        #[command(subcommand)]
        verb: EvidenceVerb,
    },
    /// Inspect a disk that is served on standard input and output: what the service starts,
    /// in a sandbox, for each disk of a drill.
    #[command(name = "inspect-disk", hide = true)]
    InspectDisk,
    /// Look after the service key.
    Key {
        #[command(subcommand)]
        verb: KeyVerb,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigVerb {
    /// Say what is wrong with a configuration, without starting anything.
    Check(OfConfig),
}

#[derive(Debug, Subcommand)]
pub(crate) enum UserVerb {
    /// Read a password from standard input and print its hash.
    Hash,
}

#[derive(Debug, Subcommand)]
pub(crate) enum RepoVerb {
    /// Make a project's repository before its first backup does. The service must not run.
    Init(OfProject),
    /// Judge repositories: index, snapshots, trees, presence and size of packs. Works
    /// beside a running service and without the catalogue.
    Check(CheckOptions),
    /// Read back what is stored, from where the last call ended, and record what is damaged,
    /// so that no later backup relies on it. Works beside a running service.
    Verify(VerifyOptions),
    /// Remove what no backup needs. The service must not run.
    Prune(PruneOptions),
    /// Tell what repositories hold. Works beside a running service.
    Stats(StatsOptions),
    /// Write what stock restic needs to read a project's backups. Works beside a running
    /// service and without the catalogue: the service key and the repository are enough.
    RecoveryKit(KitOptions),
    /// Take every backup that a repository tells of and the catalogue does not know into
    /// the catalogue, as after the database was lost. The service must not run.
    RebuildCatalogue(RebuildOptions),
}

#[derive(Debug, Subcommand)]
pub(crate) enum EvidenceVerb {
    /// Write a project's receipts to a file, a record a line. Works beside a running service.
    Export(ExportOptions),
    /// Check such a file: every signature, and that no record is missing, changed or out of
    /// place. Takes nothing but the file.
    Verify(ReceiptsOptions),
}

#[derive(Debug, Args)]
pub(crate) struct ExportOptions {
    /// The configuration file.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: PathBuf,
    /// The project's id.
    #[arg(long, value_name = "ID")]
    pub(crate) project: String,
    /// A file that does not exist yet.
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct ReceiptsOptions {
    /// An exported file.
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// The public key that all of it must be signed by, as an earlier check told it.
    #[arg(long, value_name = "HEX")]
    pub(crate) key: Option<String>,
    /// The hash of the last record, as an earlier check told it: shows what was cut off.
    #[arg(long, value_name = "HEX")]
    pub(crate) head: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum KeyVerb {
    /// Replace the service key, and wrap every repository's password with the new one. One
    /// that was interrupted is brought to its end. The service must not run.
    Rotate(RotateOptions),
}

/// One project.
#[derive(Debug, Args)]
pub(crate) struct OfProject {
    /// The configuration file.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: PathBuf,
    /// The project's id.
    #[arg(long, value_name = "ID")]
    pub(crate) project: String,
    /// Print one JSON document instead of lines.
    #[arg(long)]
    pub(crate) json: bool,
}

/// One project or all that have a repository.
#[derive(Debug, Args)]
pub(crate) struct OfProjects {
    /// The configuration file.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: PathBuf,
    /// The project's id.
    #[arg(long, value_name = "ID", required_unless_present = "all")]
    pub(crate) project: Option<String>,
    /// Every project that has a repository where the configuration says.
    #[arg(long, conflicts_with = "project")]
    pub(crate) all: bool,
    /// Print one JSON document instead of lines.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct CheckOptions {
    #[command(flatten)]
    pub(crate) of: OfProjects,
    /// Read every byte of every pack as well.
    #[arg(long)]
    pub(crate) read_data: bool,
}

#[derive(Debug, Args)]
pub(crate) struct VerifyOptions {
    #[command(flatten)]
    pub(crate) of: OfProjects,
    /// Compare only the hash of every object with its name: that takes no key, finds every
    /// changed byte, and records nothing.
    #[arg(long)]
    pub(crate) keyless: bool,
    /// End after so much of each repository was read; the next call goes on from there.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) budget: Option<u64>,
    /// Read no more than so much a second.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) limit_rate: Option<u64>,
    /// Begin at the first pack again.
    #[arg(long)]
    pub(crate) from_start: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PruneOptions {
    #[command(flatten)]
    pub(crate) of: OfProjects,
    /// Tell what would be removed, and change nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// How much may lie unused in packs with what is used, in percent of the latter.
    #[arg(long, value_name = "PERCENT", default_value_t = 5, value_parser = clap::value_parser!(u8).range(0..=100))]
    pub(crate) max_unused: u8,
    /// Copy at most so much out of packs that are mostly unused.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) max_repack: Option<u64>,
    /// Remove locks of other programs: none of them uses the repository any more.
    #[arg(long)]
    pub(crate) unlock_foreign: bool,
}

#[derive(Debug, Args)]
pub(crate) struct StatsOptions {
    #[command(flatten)]
    pub(crate) of: OfProjects,
    /// Tell also what deleting this backup would free.
    #[arg(long, value_name = "ITEM", requires = "project", conflicts_with = "all")]
    pub(crate) freed_by: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct RebuildOptions {
    #[command(flatten)]
    pub(crate) of: OfProjects,
    /// A recovery kit of the project, instead of the service key that was lost: its
    /// password is wrapped by the key there is now, which is made if there is none.
    #[arg(long, value_name = "FILE", requires = "project", conflicts_with = "all")]
    pub(crate) recovery_kit: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct RotateOptions {
    /// The configuration file.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: PathBuf,
    /// Give every repository a new password too: recovery kits made before open nothing
    /// afterwards.
    #[arg(long)]
    pub(crate) passwords: bool,
    /// Print one JSON document instead of lines.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct OfConfig {
    /// The configuration file.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct KitOptions {
    /// The configuration file.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: PathBuf,
    /// The project's id.
    #[arg(long, value_name = "ID")]
    pub(crate) project: String,
    /// A file that does not exist yet; only its owner will be able to read it.
    #[arg(long, value_name = "FILE", required_unless_present = "stdout")]
    pub(crate) out: Option<PathBuf>,
    /// Print the secret instead.
    #[arg(long, conflicts_with = "out")]
    pub(crate) stdout: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DemoOptions {
    /// Where the demo keeps everything it makes.
    #[arg(long, value_name = "DIR", default_value = "kedge-demo")]
    pub(crate) state_dir: PathBuf,
    /// Delete what an earlier demo made there, and start afresh.
    #[arg(long)]
    pub(crate) reset: bool,
    /// End when the demo is done instead of serving on.
    #[arg(long)]
    pub(crate) exit: bool,
    /// Show the service's log.
    #[arg(long)]
    pub(crate) verbose: bool,
}

/// A number of bytes, as `10GiB`.
fn size(text: &str) -> Result<u64, String> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    let shift = match unit {
        "" | "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        "TiB" => 40,
        _ => return Err("expected a number and B, KiB, MiB, GiB or TiB".to_owned()),
    };
    let number: u64 = digits.parse().map_err(|_| "expected a number".to_owned())?;
    match number.checked_mul(1 << shift) {
        Some(0) => Err("expected more than nothing".to_owned()),
        Some(bytes) => Ok(bytes),
        None => Err("expected fewer bytes".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_numbers_with_a_unit() {
        for (text, bytes) in [("1", 1), ("7B", 7), ("10GiB", 10 << 30), ("3TiB", 3 << 40)] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["", "0", "GiB", "1 GiB", "1GB", "-1", "1.5GiB", "99999999999TiB", "0KiB"] {
            assert!(size(text).is_err(), "{text}");
        }
    }
}
