//! `kedge/access.json`: the wrapped password beside the repository that it opens, so that
//! repository and service key are enough. `docs/repository-format.md` describes it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use kedge_core::ids::ProjectId;
use serde::{Deserialize, Serialize};

use crate::repositories::RepositoryError;

const FORMAT: u32 = 1;
const CIPHER: &str = "aes-256-gcm";

#[derive(Debug, Serialize, Deserialize)]
struct Access {
    format: u32,
    project: ProjectId,
    cipher: String,
    wrapped_password: String,
}

/// The file that carries a wrapped password.
pub(crate) fn write(project: &ProjectId, wrapped: &[u8]) -> Result<Vec<u8>, RepositoryError> {
    let access = Access {
        format: FORMAT,
        project: project.clone(),
        cipher: CIPHER.to_owned(),
        wrapped_password: BASE64.encode(wrapped),
    };
    serde_json::to_vec_pretty(&access).map_err(|error| bad(&error))
}

/// The wrapped password that a project's file carries.
pub(crate) fn read(project: &ProjectId, bytes: &[u8]) -> Result<Vec<u8>, RepositoryError> {
    let access: Access = serde_json::from_slice(bytes).map_err(|error| bad(&error))?;
    if access.format != FORMAT || access.cipher != CIPHER {
        let what = format!("format {} with {:?} is not known", access.format, access.cipher);
        return Err(bad(&what));
    }
    if access.project != *project {
        return Err(bad(&format!("it is of project {:?}", access.project)));
    }
    BASE64
        .decode(access.wrapped_password)
        .map_err(|error| bad(&format!("wrapped_password: {error}")))
}

fn bad(what: &dyn std::fmt::Display) -> RepositoryError {
    RepositoryError::Failed(format!("kedge/access.json: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_written_for_the_project_is_read() {
        let mine = ProjectId::new("mine");
        let file = String::from_utf8(write(&mine, b"wrapped").unwrap()).unwrap();
        assert_eq!(read(&mine, file.as_bytes()).unwrap(), b"wrapped");
        assert!(read(&ProjectId::new("theirs"), file.as_bytes()).is_err());
        for (from, to) in [
            ("\"format\": 1", "\"format\": 2"),
            ("aes-256-gcm", "rot13"),
            ("d3JhcHBlZA==", "d3JhcHBlZA"),
            ("\"cipher\"", "\"cypher\""),
        ] {
            let other = file.replace(from, to);
            assert_ne!(other, file);
            assert!(read(&mine, other.as_bytes()).is_err(), "{other}");
        }
    }
}
