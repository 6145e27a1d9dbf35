//! Admits a backup: the rules, then the records and the job in one transaction, so that
//! the item can be listed when the answer leaves.

use kedge_core::checkpoint::{Checkpoint, Item, Method, SourceServer, Trigger, VolumeBackup};
use kedge_core::ids::{CheckpointId, ItemId, JobId, ServerId, VolumeBackupId, VolumeId};
use kedge_core::job::{Claim, ClaimKind, ProtectState, Work};
use kedge_core::protect::{self, ProtectPlan};
use kedge_core::refusal::Refusal;
use kedge_core::resource::Volume;
use kedge_core::status::ItemStatus;
use kedge_core::tag::{TAGS_MAX, Tag};
use kedge_store::{NewJob, StoreError};
use uuid::Uuid;

use crate::app::{App, Parts};
use crate::context::Context;
use crate::error::Error;
use crate::facts::Asker;

const NAME_CHARS_MAX: usize = 255;
const DESCRIPTION_CHARS_MAX: usize = 255;

/// What a caller asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProtectRequest {
    /// The server.
    pub server: ServerId,
    /// Its type as the caller names it.
    pub resource_type: String,
    /// Name of the backup; made up when absent.
    pub name: Option<String>,
    /// Description, possibly empty.
    pub description: String,
    /// Full, incremental, or incremental where possible.
    pub method: Option<Method>,
    /// Tags for the backup.
    pub tags: Vec<Tag>,
    /// Disks to leave out.
    pub excluded: Vec<VolumeId>,
}

impl App {
    /// Starts a backup and returns its record; the work goes on in the background.
    pub async fn protect(
        &self,
        context: &Context,
        request: ProtectRequest,
    ) -> Result<Checkpoint, Error> {
        validate(&request)?;
        let question = protect::Question {
            server: request.server.clone(),
            resource_type: request.resource_type.clone(),
            excluded: request.excluded.clone(),
        };
        let plan = self.parts.plan_protect(context, &question).await?;
        let store = &self.parts.store;
        let earlier = store.latest_available_item(context.project(), &request.server).await?;
        // A server's first backup is full, whatever is asked (docs/csbs-v1.md).
        let method = match earlier {
            Some(_) => request.method.unwrap_or(Method::Incremental),
            None => Method::Full,
        };
        let (checkpoint, job) = self.parts.records(context, request, method, plan);
        match self.parts.store.create_protect(&checkpoint, &job).await {
            Ok(()) => {}
            // Another backup of the server was admitted since the facts were gathered:
            // the rules now say which code that is.
            Err(StoreError::Claimed { .. }) => {
                self.parts.plan_protect(context, &question).await?;
                return Err(Refusal::ServerBusy(question.server).into());
            }
            Err(error) => return Err(error.into()),
        }
        self.parts.work_bell.notify_one();
        Ok(checkpoint)
    }
}

impl Parts {
    async fn plan_protect(
        &self,
        context: &Context,
        question: &protect::Question,
    ) -> Result<ProtectPlan, Error> {
        let time = self.time_for_facts(context);
        let questions = std::slice::from_ref(question);
        let asker = Asker::Request(None);
        let facts = self.gather_protect(context.project(), questions, asker, time).await?;
        let facts = facts.first().ok_or_else(|| Error::Internal("no facts".to_owned()))?;
        if let Some(server) = facts.server.seen() {
            all_attached(&question.excluded, &server.volumes)?;
        }
        Ok(protect::plan(question, facts, &self.settings.protect)?)
    }

    /// The records of a backup that was planned, and the job that will make it.
    fn records(
        &self,
        context: &Context,
        request: ProtectRequest,
        method: Method,
        plan: ProtectPlan,
    ) -> (Checkpoint, NewJob) {
        let now = self.clock.now();
        let checkpoint_id = CheckpointId::from(self.ids.next_uuid());
        let item_id = ItemId::from(self.ids.next_uuid());
        let job_id = JobId::from(self.ids.next_uuid());
        let made_up = made_up_name(self.ids.next_uuid());
        let server = plan.server;
        let volumes =
            server.volumes.iter().map(|volume| self.volume_backup(&made_up, volume)).collect();
        let item = Item {
            id: item_id.clone(),
            checkpoint_id: checkpoint_id.clone(),
            project_id: context.project().clone(),
            name: request.name.unwrap_or(made_up),
            description: request.description,
            status: ItemStatus::Protecting,
            source: SourceServer {
                id: server.id.clone(),
                name: server.name.clone(),
                kind: server.kind,
                zone: server.zone,
                hardware: server.hardware,
            },
            trigger: Trigger::Manual,
            method,
            created_at: now,
            updated_at: now,
            protected_at: None,
            finished_at: None,
            sequence: None,
            tags: request.tags,
            volumes,
            fault: None,
            progress: 0,
            job_id: job_id.clone(),
            snapshot: None,
        };
        let checkpoint = Checkpoint {
            id: checkpoint_id.clone(),
            project_id: context.project().clone(),
            created_at: now,
            plan_id: format!("fake_{}", self.ids.next_uuid()),
            plan_name: format!("server protect plan for {}", server.id),
            items: vec![item],
        };
        let job = NewJob {
            id: job_id,
            project_id: context.project().clone(),
            work: Work::Protect {
                checkpoint: checkpoint_id,
                item: item_id.clone(),
                trigger: Trigger::Manual,
                state: ProtectState::Start,
            },
            // The item needs no claim: nothing may be done with it while it is `protecting`,
            // and once it is available, what is left concerns the server.
            claims: vec![Claim::exclusive(ClaimKind::Server, &server.id)],
            run_at: now,
        };
        (checkpoint, job)
    }

    fn volume_backup(&self, prefix: &str, volume: &Volume) -> VolumeBackup {
        VolumeBackup {
            id: VolumeBackupId::from(self.ids.next_uuid()),
            // It keeps the made-up prefix even when the user named the backup (docs/csbs-v1.md).
            name: format!("{prefix}_{}", volume.name),
            source_volume_id: volume.id.clone(),
            source_volume_name: volume.name.clone(),
            source_size_bytes: volume.size_bytes,
            role: volume.role,
            encryption: volume.encryption,
            stored: None,
        }
    }
}

/// `manualbk_` and four hexadecimal digits (docs/csbs-v1.md).
fn made_up_name(uuid: Uuid) -> String {
    let digits = uuid.simple().to_string();
    format!("manualbk_{}", digits.get(..4).unwrap_or("0000"))
}

fn validate(request: &ProtectRequest) -> Result<(), Error> {
    if let Some(name) = &request.name {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        if name.is_empty() || name.len() > NAME_CHARS_MAX || !name.chars().all(plain) {
            return Err(Error::bad(
                "protect.backup_name",
                format!("1 to {NAME_CHARS_MAX} letters, digits, '_' or '-'"),
            ));
        }
    }
    let description = &request.description;
    if description.chars().count() > DESCRIPTION_CHARS_MAX || description.contains(['<', '>']) {
        return Err(Error::bad(
            "protect.description",
            format!("at most {DESCRIPTION_CHARS_MAX} characters, none of them '<' or '>'"),
        ));
    }
    if request.tags.len() > TAGS_MAX {
        return Err(Refusal::TooManyTags.into());
    }
    Ok(())
}

fn all_attached(excluded: &[VolumeId], attached: &[Volume]) -> Result<(), Error> {
    match excluded.iter().position(|id| attached.iter().all(|volume| volume.id != *id)) {
        None => Ok(()),
        Some(index) => Err(Error::bad(
            format!("protect.extra_info.exclude_volumes[{index}]"),
            "the id of a disk attached to the server",
        )),
    }
}
