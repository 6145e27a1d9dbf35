use kedge_core::checkpoint::{Checkpoint, Item, Method, SnapshotRef};
use kedge_core::ids::{ItemId, ServerId};
use kedge_core::status::ItemStatus;
use kedge_core::tag::Tag;
use kedge_store::{Direction, ItemFilter, PageRequest, SortKey, Store, StoreError};

use crate::fixture::*;

const BOTH: [Direction; 2] = [Direction::Asc, Direction::Desc];

/// Items that are equal in many ways, so that every tie-break counts.
async fn store_of_ties() -> (Store, Vec<Item>) {
    let store = Store::open_in_memory().await.unwrap();
    let statuses = [ItemStatus::Available, ItemStatus::Error, ItemStatus::Protecting];
    let names = ["a", "B", "ä", "a%"];
    let mut items = Vec::new();
    for (number, turn) in (0..19_u64).zip(0_usize..) {
        let mut item = item(number * 7 % 19);
        item.created_at = at(i64::try_from(number % 3).unwrap());
        item.updated_at = at(-i64::try_from(number % 4).unwrap());
        item.protected_at = (number % 3 != 0).then(|| at(i64::try_from(number % 2).unwrap()));
        item.status = statuses[turn % 3];
        item.name = names[turn % 4].to_owned();
        store.adopt(&checkpoint_of(vec![item.clone()])).await.unwrap();
        items.push(item);
    }
    (store, items)
}

fn every_sort() -> Vec<Vec<(SortKey, Direction)>> {
    let mut sorts = vec![Vec::new()];
    for first in SortKey::ALL {
        for direction in BOTH {
            sorts.push(vec![(first, direction)]);
            for second in SortKey::ALL {
                sorts.extend(BOTH.map(|other| vec![(first, direction), (second, other)]));
            }
        }
    }
    sorts
}

/// Sorting written again, in another way than the store's.
fn sorted(mut items: Vec<Item>, sort: &[(SortKey, Direction)]) -> Vec<Item> {
    let last = sort.last().map_or(Direction::Desc, |(_, direction)| *direction);
    let mut keys = sort.to_vec();
    if keys.is_empty() {
        keys.push((SortKey::CreatedAt, Direction::Desc));
    }
    // A key named twice counts by its first mention, so the id's last mention is harmless.
    keys.push((SortKey::Id, last));
    for (key, direction) in keys.iter().rev() {
        items.sort_by(|a, b| {
            let order = match key {
                SortKey::CreatedAt => a.created_at.cmp(&b.created_at),
                SortKey::UpdatedAt => a.updated_at.cmp(&b.updated_at),
                SortKey::Name => a.name.cmp(&b.name),
                SortKey::Status => a.status.as_str().cmp(b.status.as_str()),
                SortKey::ProtectedAt => a.protected_at.cmp(&b.protected_at),
                SortKey::Id => a.id.cmp(&b.id),
            };
            match direction {
                Direction::Asc => order,
                Direction::Desc => order.reverse(),
            }
        });
    }
    items
}

fn ids(items: Vec<Item>) -> Vec<ItemId> {
    items.into_iter().map(|item| item.id).collect()
}

#[tokio::test]
async fn pages_put_together_are_the_whole_list_for_every_sort() {
    let (store, items) = store_of_ties().await;
    let filter = ItemFilter::default();
    for sort in every_sort() {
        let whole = ids(sorted(items.clone(), &sort));
        for limit in [4, 19, 1000] {
            let mut page = PageRequest { limit, sort: sort.clone(), ..PageRequest::default() };
            let mut seen = Vec::new();
            loop {
                let got = store.list_items(&filter, &page).await.unwrap();
                page.marker = got.items.last().map(|item| item.id.clone());
                seen.extend(ids(got.items));
                assert_eq!(got.has_more, seen.len() < whole.len(), "{sort:?} {limit}");
                if !got.has_more {
                    break;
                }
            }
            assert_eq!(seen, whole, "{sort:?} {limit}");
        }
    }
}

#[tokio::test]
async fn an_offset_counts_from_the_marker() {
    let (store, items) = store_of_ties().await;
    let sort = vec![(SortKey::Id, Direction::Asc)];
    let whole = sorted(items, &sort);
    let page =
        PageRequest { limit: 2, offset: 3, marker: Some(whole[4].id.clone()), sort: sort.clone() };
    let got = store.list_items(&ItemFilter::default(), &page).await.unwrap();
    assert_eq!(got.items, whole[8..10]);
    assert!(got.has_more);
    let beyond = PageRequest { offset: u64::MAX, ..page };
    let got = store.list_items(&ItemFilter::default(), &beyond).await.unwrap();
    assert_eq!((got.items.len(), got.has_more), (0, false));
}

#[tokio::test]
async fn a_marker_deleted_meanwhile_still_marks_its_place() {
    let store = Store::open_in_memory().await.unwrap();
    for number in 1..=3 {
        make_available(&store, number).await;
    }
    let (item, job) = delete_job(2);
    store.create_deletes(&project(), &checkpoint_id(2), &[(item, job)]).await.unwrap();
    let job = claim(&store).await;
    let done = delete_work(2, kedge_core::job::DeleteState::Done);
    store.finish_delete(&job, &done, at(1)).await.unwrap();

    let sort = vec![(SortKey::Id, Direction::Asc)];
    let page = PageRequest { marker: Some(item_id(2)), sort, ..PageRequest::default() };
    let got = store.list_items(&ItemFilter::default(), &page).await.unwrap();
    assert_eq!(ids(got.items), [item_id(3)]);
    let page = PageRequest { marker: Some(item_id(9)), ..PageRequest::default() };
    let unknown = store.list_items(&ItemFilter::default(), &page).await;
    assert_eq!(unknown, Err(StoreError::UnknownMarker));
}

/// Three items that differ in everything a filter looks at.
async fn store_of_three() -> Store {
    let store = Store::open_in_memory().await.unwrap();
    let rows = [
        (1, "Größe_100%", "web\0one", "az-1", "10.0.0.1", "", ItemStatus::Available),
        (2, "GRÖSSE-2", "Database!", "az-2", "10.0.0.2", "10.0.0.1", ItemStatus::Error),
        (3, "it's", "ΟΔΟΣ\nb\\c", "az-3\0", "", "", ItemStatus::Protecting),
    ];
    for (number, name, server, zone, private_ip, public_ip, status) in rows {
        let mut item = item(number);
        item.name = name.to_owned();
        item.source.name = server.to_owned();
        item.source.zone = zone.to_owned();
        item.source.hardware.private_ip = private_ip.to_owned();
        item.source.hardware.public_ip = public_ip.to_owned();
        item.status = status;
        item.created_at = at(i64::try_from(number).unwrap() * 10);
        let mut checkpoint = checkpoint_of(vec![item]);
        checkpoint.plan_id = format!("plan-{number}");
        store.adopt(&checkpoint).await.unwrap();
    }
    store
}

#[tokio::test]
async fn each_filter_admits_what_it_names_and_nothing_else() {
    let store = store_of_three().await;
    let none = ItemFilter::default;
    let text = |value: &str| Some(value.to_owned());
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    let server = "OS::Nova::Server";
    let rows: Vec<(&str, ItemFilter, &[u64])> = vec![
        ("nothing", none(), &[1, 2, 3]),
        ("project", ItemFilter { project: Some(project()), ..none() }, &[1, 2, 3]),
        ("another project", ItemFilter { project: Some(stranger()), ..none() }, &[]),
        ("status", ItemFilter { status: Some(ItemStatus::Error), ..none() }, &[2]),
        ("deleted", ItemFilter { status: Some(ItemStatus::Deleted), ..none() }, &[]),
        ("case", ItemFilter { name_contains: text("grösse"), ..none() }, &[1, 2]),
        ("empty part", ItemFilter { name_contains: text(""), ..none() }, &[1, 2, 3]),
        ("per cent", ItemFilter { name_contains: text("%"), ..none() }, &[1]),
        ("underscore", ItemFilter { name_contains: text("E_1"), ..none() }, &[1]),
        ("quote", ItemFilter { name_contains: text("T'S"), ..none() }, &[3]),
        ("injection", ItemFilter { name_contains: text("' OR 1=1 --"), ..none() }, &[]),
        ("NUL", ItemFilter { name_contains: text("\0"), ..none() }, &[]),
        ("huge", ItemFilter { name_contains: Some("x".repeat(100_000)), ..none() }, &[]),
        ("server", ItemFilter { resource_name_contains: text("DATA"), ..none() }, &[2]),
        ("escape", ItemFilter { resource_name_contains: text("e!"), ..none() }, &[2]),
        ("after NUL", ItemFilter { resource_name_contains: text("\0ONE"), ..none() }, &[1]),
        ("newline", ItemFilter { resource_name_contains: text("\nB\\C"), ..none() }, &[3]),
        ("greek", ItemFilter { resource_name_contains: text("οδος"), ..none() }, &[3]),
        ("zone", ItemFilter { zone: text("az-2"), ..none() }, &[2]),
        ("zone with NUL", ItemFilter { zone: text("az-3\0"), ..none() }, &[3]),
        ("part of a zone", ItemFilter { zone: text("az"), ..none() }, &[]),
        ("server id", ItemFilter { resource_id: Some(server_id(3)), ..none() }, &[3]),
        ("type", ItemFilter { resource_types: words(&["x", server]), ..none() }, &[1, 2, 3]),
        ("other type", ItemFilter { resource_types: words(&["x"]), ..none() }, &[]),
        ("from", ItemFilter { created_from: Some(at(20)), ..none() }, &[2, 3]),
        ("to", ItemFilter { created_to: Some(at(20)), ..none() }, &[1, 2]),
        (
            "window",
            ItemFilter { created_from: Some(at(11)), created_to: Some(at(29)), ..none() },
            &[2],
        ),
        ("image", ItemFilter { image_type: text("backup"), ..none() }, &[1, 2, 3]),
        ("other image", ItemFilter { image_type: text("replication"), ..none() }, &[]),
        ("policy", ItemFilter { policy_id: text("plan-2"), ..none() }, &[2]),
        ("no policy", ItemFilter { policy_id: text("plan"), ..none() }, &[]),
        ("record", ItemFilter { checkpoint_id: Some(checkpoint_id(1)), ..none() }, &[1]),
        ("address", ItemFilter { ip: text("10.0.0.1"), ..none() }, &[1, 2]),
        ("hostile address", ItemFilter { ip: text(HOSTILE), ..none() }, &[]),
        (
            "both of two",
            ItemFilter { ip: text("10.0.0.1"), status: Some(ItemStatus::Error), ..none() },
            &[2],
        ),
    ];
    let sort = vec![(SortKey::Id, Direction::Asc)];
    let page = PageRequest { sort, ..PageRequest::default() };
    for (what, filter, expected) in rows {
        let got = store.list_items(&filter, &page).await.unwrap();
        let wanted: Vec<_> = expected.iter().map(|number| item_id(*number)).collect();
        assert_eq!(ids(got.items), wanted, "{what}");
        let count = store.count_items(&filter).await.unwrap();
        assert_eq!(count, u64::try_from(expected.len()).unwrap(), "{what}");
    }
}

#[test]
fn every_word_of_a_sort_reads_back() {
    for key in SortKey::ALL {
        assert_eq!(SortKey::from_word(key.as_str()), Some(key));
    }
    for direction in BOTH {
        assert_eq!(Direction::from_word(direction.as_str()), Some(direction));
    }
    assert_eq!(SortKey::from_word("size"), None);
    assert_eq!(Direction::from_word("ASC"), None);
}

#[tokio::test]
async fn the_servers_with_backups_are_listed_by_pages_and_found_by_tag() {
    let store = Store::open_in_memory().await.unwrap();
    let tag = |value: &str| Tag::new("env", value).unwrap();
    // Two backups of every third server; the later one has no tag. One that never held data
    // leaves its server unlisted.
    for number in 0..13 {
        let mut one = item(number);
        one.source.id = if number < 12 { server_id(number % 9) } else { server_id(number) };
        one.snapshot = (number < 12).then(|| result().snapshot);
        one.tags = if number < 9 && number % 2 == 0 { vec![tag("prod")] } else { vec![tag("x")] };
        store.adopt(&checkpoint_of(vec![one])).await.unwrap();
    }
    let mut foreign = item(50);
    foreign.project_id = stranger();
    foreign.source.id = server_id(50);
    let foreign = Checkpoint { project_id: stranger(), ..checkpoint_of(vec![foreign]) };
    store.adopt(&foreign).await.unwrap();

    let all: Vec<_> = (0..9).map(server_id).collect();
    for most in [1, 4, 9, 100] {
        let mut walked: Vec<ServerId> = Vec::new();
        loop {
            let page = store.list_backed_up_servers(&project(), walked.last(), most).await.unwrap();
            assert!(page.len() <= usize::try_from(most).unwrap());
            if page.is_empty() {
                break;
            }
            walked.extend(page);
        }
        assert_eq!(walked, all);
    }
    let asked: Vec<_> = [0, 1, 2, 50, 77].map(server_id).to_vec();
    let found = store.find_tagged_servers(&project(), &asked, &tag("prod")).await.unwrap();
    assert_eq!(found, [0, 2].map(server_id).into_iter().collect());
    let found = store.find_tagged_servers(&stranger(), &asked, &tag("prod")).await.unwrap();
    assert!(found.is_empty());
}

#[tokio::test]
async fn what_is_to_be_read_back_first_has_a_tag_or_ends_a_long_chain() {
    use Method::{Full, Incremental};
    let store = Store::open_in_memory().await.unwrap();
    let gold = Tag::new("tier", "gold").unwrap();
    let mut snapshots = Vec::new();
    for (number, server, method, is_tagged) in [
        (0, 1, Full, false),
        (1, 2, Incremental, false),
        (2, 1, Incremental, true),
        (3, 2, Incremental, false),
        (4, 1, Incremental, false),
        (5, 2, Incremental, false),
        (6, 1, Full, false),
        (7, 3, Full, true),
        (8, 1, Incremental, false),
    ] {
        let snapshot = format!("{number:064}");
        let mut one = item(number);
        (one.source.id, one.method) = (server_id(server), method);
        one.tags = if is_tagged { vec![gold.clone()] } else { Vec::new() };
        one.snapshot = Some(SnapshotRef { snapshot: snapshot.clone(), tree: "7".repeat(64) });
        one.finished_at = Some(at(2000));
        store.adopt(&checkpoint_of(vec![one])).await.unwrap();
        snapshots.push(snapshot);
    }
    for (after, first, chain_min, most, expected) in [
        (0, None, 3, 9, &[5][..]),
        (0, None, 2, 9, &[5, 3, 4]),
        (0, Some(&gold), 2, 9, &[2, 7, 5, 3, 4]),
        (0, Some(&gold), 2, 3, &[2, 7, 5]),
        // A chain that began before still counts from its beginning.
        (5, None, 3, 9, &[5]),
        (4, Some(&gold), 2, 9, &[7, 5, 4]),
        (6, None, 1, 9, &[8]),
        (9, Some(&gold), 0, 9, &[]),
    ] {
        let urgent = store.list_urgent(&project(), after, first, chain_min, most).await.unwrap();
        let expected: Vec<_> = expected.iter().map(|number: &usize| &snapshots[*number]).collect();
        assert_eq!(urgent.iter().collect::<Vec<_>>(), expected, "{after} {first:?} {chain_min}");
    }
    assert_eq!(store.list_urgent(&stranger(), 0, None, 0, 9).await.unwrap(), [""; 0]);
}
