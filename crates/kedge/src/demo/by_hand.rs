//! Lines to type for whoever wants to go on from where the demo ended.

use std::path::Path;

use kedge_wire::PROVIDER_ID;
use kedge_wire::check::ResourcesAction;
use kedge_wire::checkpoint_item::CheckpointItem;

use super::account::Account;
use super::caller::{question, to_where_it_came_from};
use super::place::Place;
use super::servers::Servers;
use crate::config::Checked;
use crate::failure::{Failure, OrFail as _};
use crate::operator::say;

/// What the lines name.
pub(crate) struct ByHand<'a> {
    pub(crate) place: &'a Place,
    pub(crate) account: &'a Account,
    pub(crate) config: &'a Path,
}

impl ByHand<'_> {
    /// For the service that goes on running.
    pub(crate) fn while_serving(
        &self,
        url: &str,
        servers: &Servers,
        kept: &CheckpointItem,
    ) -> Result<(), Failure> {
        say("\ngo on by hand in another shell:")?;
        self.curl(url, servers, kept)?;
        say(&format!("\nserving on {url} until Ctrl-C"))
    }

    /// For a service that is started anew.
    pub(crate) fn after_exit(
        &self,
        config: &Checked,
        servers: &Servers,
        kept: &CheckpointItem,
    ) -> Result<(), Failure> {
        let program = std::env::current_exe().or_fail("finding this program")?;
        say("\ngo on by hand, first starting the service again:")?;
        say(&format!(
            "  {} serve --config {} &",
            quoted(&program.to_string_lossy()),
            quoted(&self.config.to_string_lossy())
        ))?;
        self.curl(&format!("http://{}", config.listen), servers, kept)
    }

    /// The password stays in a file, away from what other users see of a process.
    fn curl(&self, url: &str, servers: &Servers, kept: &CheckpointItem) -> Result<(), Failure> {
        let question = ResourcesAction {
            check_protectable: None,
            check_restorable: Some(vec![question(
                &kept.id,
                &servers.web,
                to_where_it_came_from(kept),
            )]),
        };
        let question = serde_json::to_string(&question).or_fail("a question")?;
        let file = self.place.write("question.json", &question)?;
        let login = self.place.path("login.json");
        let json = "-H 'Content-Type: application/json'";
        say(&format!("  URL={url}/v1/{}", self.account.project))?;
        say(&format!(
            "  TOKEN=$(curl -si {json} -d @{} {url}/v3/auth/tokens \\\n    \
             | tr -d '\\r' | sed -n 's/^x-subject-token: //Ip')",
            quoted(&login.to_string_lossy())
        ))?;
        say("  curl -s -H \"X-Auth-Token: $TOKEN\" $URL/checkpoint_items")?;
        say(&format!(
            "  curl -s -H \"X-Auth-Token: $TOKEN\" {json} -d @{} \\\n    \
             $URL/providers/{PROVIDER_ID}/resources/action",
            quoted(&file.to_string_lossy())
        ))
    }
}

/// A word as a shell reads it back.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_with_spaces_and_quotes_stays_one_word() {
        assert_eq!(quoted("/tmp/demo"), "/tmp/demo");
        assert_eq!(quoted("/tmp/it's mine"), r"'/tmp/it'\''s mine'");
    }
}
