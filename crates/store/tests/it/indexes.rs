//! What is asked for a caller is looked up, not searched for: each statement's plan, as the
//! database itself tells it, names the index that leads to few rows.

use std::path::Path;

use kedge_core::tag::Tag;
use kedge_store::{ItemFilter, PageRequest, Store};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{AssertSqlSafe, Connection, Row};

use crate::fixture::*;

/// How the database goes about a statement, a step a line.
async fn plan(path: &Path, sql: &str) -> Vec<String> {
    let options = SqliteConnectOptions::new().filename(path).read_only(true);
    let mut connection = SqliteConnection::connect_with(&options).await.unwrap();
    let sql = format!("EXPLAIN QUERY PLAN {sql}");
    let rows = sqlx::query(AssertSqlSafe(sql)).fetch_all(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    rows.into_iter().map(|row| row.get::<String, _>("detail")).collect()
}

/// The plans of what a call asks.
async fn plans_of(path: &Path, store: &Store, call: impl Future<Output = ()>) -> Vec<Vec<String>> {
    store.record_statements();
    call.await;
    let mut plans = Vec::new();
    for sql in store.take_statements() {
        plans.push(plan(path, &sql).await);
    }
    assert!(!plans.is_empty());
    plans
}

fn touches_items(step: &str) -> bool {
    ["i", "l", "s", "items"].iter().any(|name| {
        step.starts_with(&format!("SCAN {name} "))
            || step.starts_with(&format!("SEARCH {name} "))
            || step == format!("SCAN {name}")
    })
}

#[tokio::test]
async fn items_are_found_by_the_index_that_leads_to_few() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.db");
    let store = Store::open(&path).await.unwrap();
    make_available(&store, 1).await;
    let (project, server) = (project(), server_id(1));
    let ids = [item_id(1)];
    let servers = [server.clone()];
    let tag = Tag::new("env", "prod").unwrap();
    let filter = |change: fn(&mut ItemFilter)| {
        let mut filter = ItemFilter { project: Some(project.clone()), ..ItemFilter::default() };
        change(&mut filter);
        filter
    };
    let of_record = filter(|filter| filter.checkpoint_id = Some(checkpoint_id(1)));
    let of_server = filter(|filter| filter.resource_id = Some(server_id(1)));
    let anybodys = ItemFilter { project: None, ..of_server.clone() };
    let page = PageRequest::default();
    let primary = "sqlite_autoindex_items_1";
    let rows: Vec<(&str, &str, Vec<Vec<String>>)> = vec![
        (
            "find_items",
            primary,
            plans_of(&path, &store, async {
                store.find_items(&project, &ids).await.unwrap();
            })
            .await,
        ),
        (
            "find_checkpoint",
            "items_by_checkpoint",
            plans_of(&path, &store, async {
                store.find_checkpoint(&project, &checkpoint_id(1)).await.unwrap();
            })
            .await,
        ),
        (
            "latest",
            "items_by_server",
            plans_of(&path, &store, async {
                store.latest_available_items(&project, &server, 3).await.unwrap();
            })
            .await,
        ),
        (
            "list",
            "items_by_project",
            plans_of(&path, &store, async {
                store.list_items(&filter(|_| ()), &page).await.unwrap();
            })
            .await,
        ),
        (
            "list of a record",
            "items_by_checkpoint",
            plans_of(&path, &store, async {
                store.list_items(&of_record, &page).await.unwrap();
            })
            .await,
        ),
        (
            "count of a record",
            "items_by_checkpoint",
            plans_of(&path, &store, async {
                store.count_items(&of_record).await.unwrap();
            })
            .await,
        ),
        (
            "list of a server",
            "items_by_server",
            plans_of(&path, &store, async {
                store.list_items(&of_server, &page).await.unwrap();
            })
            .await,
        ),
        (
            "an administrator's of a server",
            "items_by_server",
            plans_of(&path, &store, async {
                store.list_items(&anybodys, &page).await.unwrap();
                store.count_items(&anybodys).await.unwrap();
            })
            .await,
        ),
        (
            "servers",
            "items_by_project_server",
            plans_of(&path, &store, async {
                store.list_backed_up_servers(&project, Some(&server), 9).await.unwrap();
            })
            .await,
        ),
        (
            "tagged",
            "items_by_project_server",
            plans_of(&path, &store, async {
                store.find_tagged_servers(&project, &servers, &tag).await.unwrap();
            })
            .await,
        ),
        (
            "the last",
            "items_by_sequence",
            plans_of(&path, &store, async {
                store.latest_sequence(&project).await.unwrap();
            })
            .await,
        ),
    ];
    for (call, index, plans) in rows {
        let steps: Vec<&String> = plans.iter().flatten().collect();
        let of_items: Vec<_> = steps.iter().filter(|step| touches_items(step)).collect();
        assert!(!of_items.is_empty(), "{call}: {steps:?}");
        let named = [format!("INDEX {index} ("), format!("INDEX {primary} (")];
        for step in &of_items {
            assert!(named.iter().any(|name| step.contains(name.as_str())), "{call}: {step}");
        }
        assert!(of_items.iter().any(|step| step.contains(&named[0])), "{call}: {of_items:?}");
    }
}
