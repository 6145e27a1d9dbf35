//! The OpenAPI document, made from the handlers and the wire's types.

use kedge_service::error::Error;
use kedge_wire as wire;
use utoipa::openapi::path::{Operation, PathItem};
use utoipa::openapi::security::{ApiKey, ApiKeyValue, SecurityScheme};
use utoipa::openapi::{ContentBuilder, OpenApi as Document, Ref, Response, ResponseBuilder};
use utoipa::{Modify, OpenApi};

use crate::handlers::{
    checkpoints, checks, fleet, identity, items, plans, proofs, restores, service,
};

/// Name of the token's scheme in the document.
const TOKEN: &str = "token";

/// What any call may answer besides success (docs/csbs-v1.md and the API's own limits).
const ERRORS: [(&str, &str); 11] = [
    ("400", "A parameter is malformed, or the request cannot be done now"),
    ("401", "No token, or not a valid one"),
    ("403", "Not entitled"),
    ("404", "Not found"),
    ("405", "Another method"),
    ("413", "Too large"),
    ("415", "Not JSON"),
    ("429", "Too many at once"),
    ("500", "Internal error, and some refusals published with this status"),
    ("503", "Unavailable"),
    ("504", "It took too long"),
];

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Kedge",
        description = "Backs up whole servers and restores them. The CSBS v1 API.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    paths(
        service::versions,
        service::versions_below,
        service::alive,
        service::ready,
        service::openapi,
        identity::version,
        identity::login,
        identity::show_token,
        identity::revoke,
        identity::catalog,
        identity::projects,
        identity::projects_by_name,
        checks::check,
        checks::receipts,
        checkpoints::protect,
        checkpoints::delete,
        items::list,
        items::count,
        items::show,
        plans::show,
        plans::leases,
        plans::take,
        plans::end,
        fleet::ask,
        proofs::create,
        proofs::list,
        restores::restore,
        restores::list,
        restores::show,
    ),
    components(schemas(wire::error::ErrorBody, wire::error::KeystoneError)),
    modifiers(&Common),
    security(("token" = [])),
)]
struct Api;

/// What all operations have in common.
struct Common;

impl Modify for Common {
    fn modify(&self, document: &mut Document) {
        let header = ApiKeyValue::new("X-Auth-Token");
        let scheme = SecurityScheme::ApiKey(ApiKey::Header(header));
        if let Some(components) = &mut document.components {
            components.add_security_scheme(TOKEN, scheme);
        }
        document.paths.paths.values_mut().flat_map(operations).for_each(add_errors);
    }
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    [&mut item.get, &mut item.post, &mut item.delete].into_iter().flatten()
}

fn add_errors(operation: &mut Operation) {
    for (status, description) in ERRORS {
        let answer = error_response(description).into();
        operation.responses.responses.entry(status.to_owned()).or_insert(answer);
    }
}

fn error_response(description: &str) -> Response {
    let content = ContentBuilder::new().schema(Some(Ref::from_schema_name("ErrorBody"))).build();
    ResponseBuilder::new().description(description).content("application/json", content).build()
}

/// The document as JSON, the same text every time.
pub fn openapi_json() -> Result<String, Error> {
    let mut text = Api::openapi()
        .to_pretty_json()
        .map_err(|error| Error::Internal(format!("the OpenAPI document: {error}")))?;
    text.push('\n');
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::routes::routes;

    const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/openapi.json");

    #[test]
    fn every_route_is_in_the_document_and_no_other() {
        let document: serde_json::Value = serde_json::from_str(&openapi_json().unwrap()).unwrap();
        let mut documented = BTreeSet::new();
        for (path, methods) in document["paths"].as_object().unwrap() {
            for method in methods.as_object().unwrap().keys() {
                documented.insert(format!("{} {path}", method.to_uppercase()));
            }
        }
        // A path and the same with a slash at its end are one in the document.
        let without_slash = |path: &'static str| {
            path.strip_suffix('/').filter(|path| !path.is_empty()).unwrap_or(path)
        };
        let served: BTreeSet<_> = routes()
            .iter()
            .map(|route| format!("{} {}", route.method, without_slash(route.path)))
            .collect();
        assert_eq!(documented, served);
    }

    #[test]
    fn every_operation_has_its_own_id() {
        let text = openapi_json().unwrap();
        let ids: Vec<_> = text.lines().filter(|line| line.contains("\"operationId\"")).collect();
        let distinct: BTreeSet<_> = ids.iter().collect();
        assert_eq!((ids.len(), distinct.len()), (29, 29), "{ids:?}");
    }

    #[test]
    fn every_reference_in_the_document_leads_somewhere() {
        let text = openapi_json().unwrap();
        let document: serde_json::Value = serde_json::from_str(&text).unwrap();
        let references: BTreeSet<_> =
            text.split("\"$ref\": \"#").skip(1).filter_map(|rest| rest.split('"').next()).collect();
        assert!(references.len() > 30, "{references:?}");
        for reference in references {
            assert!(document.pointer(reference).is_some(), "{reference}");
        }
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "the switch that rewrites generated files")]
    fn docs_openapi_is_in_step() {
        let text = openapi_json().unwrap();
        if std::env::var("KEDGE_BLESS").is_ok() {
            std::fs::write(DOCUMENT, &text).unwrap();
        }
        let stored = std::fs::read_to_string(DOCUMENT).unwrap_or_default();
        assert!(stored == text, "docs/openapi.json is out of step: run `cargo xtask gen`");
    }
}
