//! `kedge key`: the service key looked after by hand.

use std::sync::Arc;

use kedge_service::rotation::{Passwords, Rotation};
use serde_json::json;

use super::report::{Form, Outcome, Report};
use super::{Found, note, own_catalogue};
use crate::arguments::{KeyVerb, RotateOptions};
use crate::config::Checked;
use crate::failure::{Failure, OrFail as _};
use crate::outside::SystemClock;
use crate::{halt, places};

pub(crate) async fn run(verb: KeyVerb) -> Result<Found, Failure> {
    match verb {
        KeyVerb::Rotate(options) => rotate(&options).await,
    }
}

/// Replaces the service key.
async fn rotate(options: &RotateOptions) -> Result<Found, Failure> {
    let config = Checked::read(&options.config)?;
    let store = own_catalogue(&config).await?;
    let rotation = Rotation {
        key_file: &config.service_key,
        places: places::open(&config)?,
        store: store.clone(),
        clock: Arc::new(SystemClock),
        kdf: config.settings.kdf,
        passwords: if options.passwords { Passwords::Renew } else { Passwords::Keep },
        points: &halt::points(),
    };
    let rotated = rotation.run().await;
    store.close().await;
    let rotated = rotated.or_fail("replacing the service key")?;
    let form = Form::json_if(options.json);
    let mut report = Report::new("key rotate", form);
    let summary = match options.passwords {
        true => "has a new password, wrapped with the new key",
        false => "its password is wrapped with the new key",
    };
    for (project, done) in rotated.repositories {
        let outcome = done.map(|()| Outcome::new(summary, json!({})));
        report.add(&project, outcome.map_err(|error| error.to_string()))?;
    }
    if rotated.resumed {
        note("brought an earlier replacement of the key to its end");
    }
    if !rotated.old_key_dropped {
        note(
            "the key file still holds the old key, because a repository still needs it: mend \
             what is told above and run this again",
        );
    } else if form == Form::Lines {
        super::say("the service key was replaced; copy the new one to where the old one was kept")?;
    }
    report.end(json!({
        "resumed": rotated.resumed,
        "old_key_dropped": rotated.old_key_dropped,
        "passwords_renewed": options.passwords,
    }))
}
