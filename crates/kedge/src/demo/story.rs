//! The steps of the demo, in order.

use kedge_wire::check::RestorableParam;
use kedge_wire::checkpoint_item::CheckpointItem;
use uuid::Uuid;

use super::account::Account;
use super::caller::{Caller, Kind, question, to_where_it_came_from};
use super::place::used_bytes;
use super::servers::{DemoServer, Servers};
use super::show::{Step, head, size};
use crate::config::{Checked, Location};
use crate::failure::{Failure, OrFail as _};
use crate::node::Node;
use crate::operator::say;

/// The demo while it runs.
pub(crate) struct Story<'a> {
    /// The service itself: only to hold its workers still while a question is asked.
    node: &'a mut Node,
    config: &'a Checked,
    servers: &'a Servers,
}

/// Both servers' backups of one round.
struct Round {
    web: CheckpointItem,
    db: CheckpointItem,
}

/// A question whose answer must be no, with this code.
struct No {
    what: &'static str,
    code: &'static str,
    question: RestorableParam,
}

impl<'a> Story<'a> {
    pub(crate) fn begin(node: &'a mut Node, config: &'a Checked, servers: &'a Servers) -> Self {
        Self { node, config, servers }
    }

    /// Tells it; returns a backup that is there afterwards, to go on with.
    pub(crate) async fn tell(
        &mut self,
        url: &str,
        account: &Account,
    ) -> Result<CheckpointItem, Failure> {
        head()?;
        let step = Step::begin("log in");
        let caller = Caller::log_in(url, account).await?;
        step.end("done")?;
        self.can_be_backed_up(&caller).await?;
        let first = self.back_up_both(&caller, &Kind::Full).await?;
        self.work_on_disks()?;
        let second = self.back_up_both(&caller, &Kind::Incremental).await?;
        let system_only = self.back_up_system_disk(&caller).await?;
        self.destroy_disks()?;
        self.ask(&caller, &second, &system_only).await?;
        self.delete(&caller, &first.web).await?;
        self.restore(&caller, &second.web, &self.servers.web).await?;
        self.restore(&caller, &second.db, &self.servers.db).await?;
        self.compare()?;
        Ok(second.web)
    }

    async fn can_be_backed_up(&mut self, caller: &Caller) -> Result<(), Failure> {
        let step = Step::begin("can web and db be backed up?");
        let answers = caller.check_protectable(&self.servers.all()).await?;
        if !answers.iter().all(|answer| answer.result) {
            return Err(Failure::new(format!("expected true for both, got {answers:?}")));
        }
        step.end("true for both")
    }

    async fn back_up_both(&mut self, caller: &Caller, kind: &Kind) -> Result<Round, Failure> {
        let web = self.back_up(caller, &self.servers.web, kind).await?;
        let db = self.back_up(caller, &self.servers.db, kind).await?;
        Ok(Round { web, db })
    }

    /// A backup of web without its data disk.
    async fn back_up_system_disk(&mut self, caller: &Caller) -> Result<CheckpointItem, Failure> {
        let web = &self.servers.web;
        let others = web.disks.iter().filter(|disk| disk.name != "system");
        let kind = Kind::Without(others.map(|disk| disk.id).collect());
        self.back_up(caller, web, &kind).await
    }

    async fn back_up(
        &mut self,
        caller: &Caller,
        server: &DemoServer,
        kind: &Kind,
    ) -> Result<CheckpointItem, Failure> {
        let (name, data_bytes) = match kind {
            Kind::Full => (format!("back up {}, full", server.name), server.size_bytes()),
            Kind::Incremental => {
                (format!("back up {}, incremental", server.name), server.size_bytes())
            }
            Kind::Without(disks) => {
                let kept = server.disks.iter().filter(|disk| !disks.contains(&disk.id));
                let bytes = kept.map(|disk| disk.size_bytes).sum();
                (format!("back up {}, system disk only", server.name), bytes)
            }
        };
        let before = self.repository_bytes()?;
        let step = Step::begin_measured(name);
        let item = caller.protect(server, kind, &step).await?;
        let stored = self.repository_bytes()?.saturating_sub(before);
        step.end(&format!("{} of disks, {} stored", size(data_bytes), size(stored)))?;
        Ok(item)
    }

    fn repository_bytes(&self) -> Result<u64, Failure> {
        match &self.config.repositories {
            Location::Directory(dir) => used_bytes(dir).or_fail(dir.display()),
            // The demo's own configuration names none.
            Location::S3(_) => Ok(0),
        }
    }

    fn work_on_disks(&self) -> Result<(), Failure> {
        let step = Step::begin("work on the servers");
        let written = self.servers.work()?;
        self.servers.remember()?;
        step.end(&format!("{} written on 3 disks", size(written)))
    }

    fn destroy_disks(&self) -> Result<(), Failure> {
        let step = Step::begin("overwrite all disks with noise");
        self.servers.destroy()?;
        let same = self.servers.disks().map(|(_, disk)| disk.first_difference());
        for difference in same {
            difference?.or_fail("a disk is as it was, though overwritten")?;
        }
        step.end("nothing is left")
    }

    async fn ask(
        &mut self,
        caller: &Caller,
        second: &Round,
        system_only: &CheckpointItem,
    ) -> Result<(), Failure> {
        let web = &self.servers.web;
        let step = Step::begin("can web be restored?");
        let asked = question(&second.web.id, web, to_where_it_came_from(&second.web));
        let yes = caller.check_restorable(asked).await?;
        if !yes.result {
            return Err(Failure::new(format!("expected true, got {yes:?}")));
        }
        step.end("true")?;
        for no in self.questions_to_refuse(second, system_only)? {
            self.expect_no(caller, no).await?;
        }
        Ok(())
    }

    /// One thing is wrong in each.
    fn questions_to_refuse(
        &self,
        second: &Round,
        system_only: &CheckpointItem,
    ) -> Result<Vec<No>, Failure> {
        let Servers { web, db, .. } = self.servers;
        let db_disk = db.disks.first().or_fail("db has no disk")?.id.to_string();
        let whole = || to_where_it_came_from(&second.web);
        let small = to_where_it_came_from(system_only)
            .into_iter()
            .map(|line| kedge_wire::check::RestoreVolumeMapping {
                volume_id: db_disk.clone(),
                ..line
            })
            .collect();
        let mut elsewhere = whole();
        let mut too_few = whole();
        too_few.pop();
        let last = elsewhere.last_mut().or_fail("web's backup has no disk")?;
        last.volume_id.clone_from(&db_disk);
        let unknown = Uuid::new_v4().to_string();
        let no = |what, code, question| No { what, code, question };
        Ok(vec![
            no(
                "… onto a disk of half the size?",
                "CSBS.6024",
                question(&system_only.id, db, small),
            ),
            no(
                "… onto another server's disk?",
                "CSBS.6014",
                question(&second.web.id, web, elsewhere),
            ),
            no("… with a disk left out?", "CSBS.6018", question(&second.web.id, web, too_few)),
            no("… from an unknown backup?", "CSBS.3001", question(&unknown, web, whole())),
        ])
    }

    async fn expect_no(&mut self, caller: &Caller, no: No) -> Result<(), Failure> {
        let step = Step::begin(no.what);
        let answer = caller.check_restorable(no.question).await?;
        if answer.result || answer.error_code != no.code {
            return Err(Failure::new(format!("expected {}, got {answer:?}", no.code)));
        }
        step.end(&format!("false: {} {}", answer.error_code, answer.error_msg))
    }

    /// Deletes the backup the later ones were built on. With the workers held, the deletion
    /// stays under way for as long as the question takes.
    async fn delete(&mut self, caller: &Caller, item: &CheckpointItem) -> Result<(), Failure> {
        self.node.stop_workers().await;
        caller.begin_delete(item).await?;
        let asked = question(&item.id, &self.servers.web, to_where_it_came_from(item));
        let what = "… from one being deleted?";
        self.expect_no(caller, No { what, code: "CSBS.4000", question: asked }).await?;
        let step = Step::begin("delete web's full backup");
        self.node.start_workers();
        caller.wait_until_gone(item).await?;
        step.end("gone; the incremental stands alone")
    }

    async fn restore(
        &mut self,
        caller: &Caller,
        item: &CheckpointItem,
        server: &DemoServer,
    ) -> Result<(), Failure> {
        let step = Step::begin_measured(format!("restore {}", server.name));
        caller.restore(item, server, &step).await?;
        step.end(&format!("{} of disks, written and read back", size(server.size_bytes())))
    }

    /// The judge is the demo's own copy.
    fn compare(&self) -> Result<(), Failure> {
        let step = Step::begin("compare every byte");
        let mut bytes = 0;
        let mut identical = Vec::new();
        for (server, disk) in self.servers.disks() {
            if let Some(at) = disk.first_difference()? {
                let (server, disk) = (server.name, disk.name);
                return Err(Failure::new(format!("{server}/{disk} differs at byte {at}")));
            }
            identical.push(format!("{}/{}", server.name, disk.name));
            bytes += disk.size_bytes;
        }
        step.end(&format!("{} compared with the demo's own copies", size(bytes)))?;
        for disk in identical {
            say(&format!("  restored bytes identical: {disk}"))?;
        }
        let stored = size(self.repository_bytes()?);
        say(&format!("\n  {stored} in the repository hold the four backups that are left"))
    }
}
