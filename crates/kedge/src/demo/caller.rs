//! The demo as a client: everything goes over HTTP, as anybody's program would.

use std::time::Duration;

use kedge_cli::{Client, ClientError, ProjectName};
use kedge_core::ports::Clock as _;
use kedge_wire::check::{CheckResp, RestorableParam, RestorableTarget, RestoreVolumeMapping};
use kedge_wire::checkpoint::{Protect, ProtectExtraInfo};
use kedge_wire::checkpoint_item::CheckpointItem;
use kedge_wire::restore::{RestoreParameters, RestoreTargets};
use uuid::Uuid;

use super::account::Account;
use super::servers::DemoServer;
use super::show::Step;
use crate::failure::{Failure, OrFail as _};
use crate::outside::SystemClock;

/// Between two questions about work in progress.
const POLL: Duration = Duration::from_millis(40);

/// A minute per step is many times what any takes; longer means that something hangs.
const PATIENCE: Duration = Duration::from_secs(60);

const SERVER_TYPE: &str = "OS::Nova::Server";

/// Asks the service, and waits for what it does.
#[derive(Debug)]
pub(crate) struct Caller {
    client: Client,
}

/// How a backup is to be made.
#[derive(Clone, Debug)]
pub(crate) enum Kind {
    Full,
    Incremental,
    /// Incremental, without these disks.
    Without(Vec<Uuid>),
}

/// Gives up on what takes too long.
struct Patience {
    until: Duration,
    waiting_for: String,
}

impl Patience {
    fn new(waiting_for: impl Into<String>) -> Self {
        Self { until: SystemClock.monotonic() + PATIENCE, waiting_for: waiting_for.into() }
    }

    async fn pause(&self) -> Result<(), Failure> {
        if SystemClock.monotonic() > self.until {
            return Err(Failure::new(format!("waited too long for {}", self.waiting_for)));
        }
        tokio::time::sleep(POLL).await;
        Ok(())
    }
}

impl Caller {
    pub(crate) async fn log_in(url: &str, account: &Account) -> Result<Self, Failure> {
        let mut client = Client::new(url).or_fail("HTTP client")?;
        let project = ProjectName::Id(account.project.clone());
        let logged_in = client.login(account.user(), account.password(), &project).await;
        logged_in.or_fail("log in")?;
        Ok(Self { client })
    }

    /// Asks whether these servers can be backed up.
    pub(crate) async fn check_protectable(
        &self,
        servers: &[&DemoServer],
    ) -> Result<Vec<CheckResp>, Failure> {
        let ids: Vec<_> = servers.iter().map(|server| server.id.to_string()).collect();
        let ids: Vec<_> = ids.iter().map(String::as_str).collect();
        self.client.check_protectable(&ids).await.or_fail("check_protectable")
    }

    /// Backs a server up and waits for the backup.
    pub(crate) async fn protect(
        &self,
        server: &DemoServer,
        kind: &Kind,
        step: &Step,
    ) -> Result<CheckpointItem, Failure> {
        let excluded = match kind {
            Kind::Full | Kind::Incremental => None,
            Kind::Without(disks) => Some(disks.iter().map(Uuid::to_string).collect()),
        };
        let request = Protect {
            incremental: Some(!matches!(kind, Kind::Full)),
            extra_info: excluded.map(|disks| ProtectExtraInfo { exclude_volumes: Some(disks) }),
            ..Protect::default()
        };
        let id = server.id.to_string();
        let checkpoint = self.client.protect(&id, request).await.or_fail("protect")?;
        let of_run = [("checkpoint_id", checkpoint.id.as_str())];
        let items = self.client.list_items(&of_run).await.or_fail("checkpoint_items")?;
        let item = items.into_iter().next().or_fail("the run has no backup")?;
        let item = self.wait_for_item(&item.id, step).await?;
        self.wait_until_free(server).await?;
        Ok(item)
    }

    async fn wait_for_item(&self, id: &str, step: &Step) -> Result<CheckpointItem, Failure> {
        let patience = Patience::new("a backup");
        loop {
            let item = self.client.get_item(id).await.or_fail("checkpoint_item")?;
            match item.status.as_str() {
                "available" => return Ok(item),
                "error" => {
                    let why = format!("the backup failed: {}", item.extend_info.fail_reason);
                    return Err(Failure::new(why));
                }
                _ => step.progress(u64::from(item.extend_info.progress)),
            }
            patience.pause().await?;
        }
    }

    /// The job that made a backup ends a moment after the backup is available.
    async fn wait_until_free(&self, server: &DemoServer) -> Result<(), Failure> {
        let patience = Patience::new(format!("{} to be free", server.name));
        while !self.check_protectable(&[server]).await?.iter().all(|answer| answer.result) {
            patience.pause().await?;
        }
        Ok(())
    }

    /// Asks whether a backup can be restored.
    pub(crate) async fn check_restorable(
        &self,
        question: RestorableParam,
    ) -> Result<CheckResp, Failure> {
        let answers = self.client.check_restorable(vec![question]).await;
        let answers = answers.or_fail("check_restorable")?;
        answers.into_iter().next().or_fail("check_restorable: no answer")
    }

    /// Restores a backup to the server it was made of and waits until it is done.
    pub(crate) async fn restore(
        &self,
        item: &CheckpointItem,
        server: &DemoServer,
        step: &Step,
    ) -> Result<(), Failure> {
        let parameters = RestoreParameters {
            checkpoint_item_id: item.id.clone(),
            power_on: true,
            targets: RestoreTargets {
                server_id: server.id.to_string(),
                volumes: to_where_it_came_from(item),
                resource_type: None,
            },
            plan_id: None,
        };
        let restore = self.client.restore(&item.checkpoint_id, parameters).await;
        let restore = restore.or_fail("restore")?;
        let patience = Patience::new("a restore");
        loop {
            let restore = self.client.get_restore(&restore.id).await.or_fail("restores")?;
            match restore.status.as_str() {
                "success" => return Ok(()),
                "fail" => {
                    let why: Vec<_> = restore.resources_reason.into_values().collect();
                    return Err(Failure::new(format!("the restore failed: {}", why.join(", "))));
                }
                _ => {}
            }
            let item = self.client.get_item(&item.id).await.or_fail("checkpoint_item")?;
            step.progress(u64::from(item.extend_info.progress));
            patience.pause().await?;
        }
    }

    /// Asks for a backup to be deleted; the work goes on in the background.
    pub(crate) async fn begin_delete(&self, item: &CheckpointItem) -> Result<(), Failure> {
        let items = [item.id.as_str()];
        self.client.delete_checkpoint(&item.checkpoint_id, &items).await.or_fail("delete")
    }

    pub(crate) async fn wait_until_gone(&self, item: &CheckpointItem) -> Result<(), Failure> {
        let patience = Patience::new("a deletion");
        loop {
            match self.client.get_item(&item.id).await {
                Ok(_) => patience.pause().await?,
                Err(ClientError::Refused { status: 404, .. }) => return Ok(()),
                Err(error) => return Err(error).or_fail("checkpoint_item"),
            }
        }
    }
}

/// Each disk's backup to the disk it was made of.
pub(crate) fn to_where_it_came_from(item: &CheckpointItem) -> Vec<RestoreVolumeMapping> {
    let backups = &item.extend_info.volume_backups;
    let line = |backup: &kedge_wire::checkpoint_item::VolumeBackup| RestoreVolumeMapping {
        backup_id: backup.id.clone(),
        volume_id: backup.source_volume_id.clone(),
    };
    backups.iter().map(line).collect()
}

/// Can this backup be restored to that server, disk by disk?
pub(crate) fn question(
    item_id: &str,
    server: &DemoServer,
    volumes: Vec<RestoreVolumeMapping>,
) -> RestorableParam {
    RestorableParam {
        checkpoint_item_id: item_id.to_owned(),
        target: RestorableTarget {
            resource_id: server.id.to_string(),
            resource_type: SERVER_TYPE.to_owned(),
            volumes,
        },
    }
}
