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
    /// Reach backups without the service.
    Repo {
        #[command(subcommand)]
        verb: RepoVerb,
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
    /// Write what stock restic needs to read a project's backups. Works beside a running
    /// service and without the catalogue: the service key and the repository are enough.
    RecoveryKit(KitOptions),
    /// Take every backup that a project's repository tells of and the catalogue does not
    /// know into the catalogue, as after the database was lost. The service must not run.
    Adopt(AdoptOptions),
}

#[derive(Debug, Args)]
pub(crate) struct AdoptOptions {
    /// The configuration file.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: PathBuf,
    /// The project's id.
    #[arg(long, value_name = "ID")]
    pub(crate) project: String,
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
