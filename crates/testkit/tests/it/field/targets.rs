//! Targets that do not fit, belong to others, or are not what they were.

use kedge_cloud::sim::SimOp;
use kedge_core::ids::ServerId;
use kedge_core::ports::CloudError;
use kedge_core::resource::{Encryption, ServerStatus, Sharing, VolumeRole};
use kedge_core::restore::{Mapping, Pair};
use kedge_service::context::Right;
use kedge_testkit::{OTHER_PROJECT, STRANGER};

use super::*;

/// <https://github.com/openebs/openebs/issues/1911>,
/// <https://github.com/vmware-tanzu/velero-plugin-for-csi/issues/40>
#[tokio::test]
async fn a_target_held_the_data_and_not_the_disk() {
    let harness = Harness::new().await;
    let mut content = vec![0; 4 * MIB];
    content[..MIB].copy_from_slice(&disk(30, MIB));
    let server = harness.add_server(&[&content]);
    let saved = back_up(&harness, &server).await;
    let small = harness.add_server(&[&disk(31, 2 * MIB)]);
    assert_no(&harness, &saved, straight(&saved, &small), Code::TargetTooSmall).await;
}

/// <https://github.com/ovh/public-cloud-roadmap/issues/1130>
#[tokio::test]
async fn a_target_of_the_same_nominal_size_was_two_megabytes_short() {
    let harness = Harness::new().await;
    let server = harness.add_server(&[&disk(32, 3 * MIB)]);
    let saved = back_up(&harness, &server).await;
    for short_by in [2 * MIB, 512, 1] {
        let short = harness.add_server(&[&disk(33, 3 * MIB - short_by)]);
        assert_no(&harness, &saved, straight(&saved, &short), Code::TargetTooSmall).await;
    }
}

/// <https://github.com/wamdam/backy2/issues/34>,
/// <https://github.com/openstack/cinder/commit/e54f34245880c105225675d9fb91d2ad1997f7ba>
#[tokio::test]
async fn a_larger_target_was_refused_or_lost_what_lay_beyond() {
    let harness = Harness::new().await;
    let content = disk(34, MIB);
    let server = harness.add_server(&[&content]);
    let saved = back_up(&harness, &server).await;
    let beyond = disk(35, 3 * MIB);
    let larger = harness.add_server(&[&beyond]);
    assert_eq!(verdict(&harness, &straight(&saved, &larger)).await, Ok(()));
    begin_restore(&harness, &saved, straight(&saved, &larger)).await.unwrap();
    harness.run_jobs_to_their_end().await;
    // As the plan of the check says: what lies beyond the backup stays.
    assert!(contents(&harness, &larger)[0] == [&content[..], &beyond[MIB..]].concat());
}

/// <https://github.com/longhorn/longhorn/issues/13234>
#[tokio::test]
async fn an_encrypted_disk_went_onto_a_plain_one() {
    let harness = Harness::new().await;
    let server = harness.add_server(&[&disk(36, MIB)]);
    harness.cloud.edit_server(&server.id, |server| {
        server.volumes[0].encryption = Encryption::Encrypted;
    });
    let saved = back_up(&harness, &server).await;
    let plain = harness.add_server(&[&disk(37, MIB)]);
    assert_no(&harness, &saved, straight(&saved, &plain), Code::EncryptionMismatch).await;
}

/// <https://github.com/velero-io/velero/issues/4799>,
/// <https://github.com/velero-io/velero/issues/4154>
#[tokio::test]
async fn the_target_was_in_another_zone() {
    let harness = Harness::new().await;
    let server = harness.add_server(&[&disk(38, MIB)]);
    let saved = back_up(&harness, &server).await;
    let moved = harness.add_server(&[&disk(39, MIB)]);
    harness.cloud.edit_server(&moved.id, |server| server.zone = "az-of-another-region".into());
    assert_no(&harness, &saved, straight(&saved, &moved), Code::ZoneMismatch).await;
}

/// <https://github.com/harvester/harvester/issues/9357>
#[tokio::test]
async fn a_new_server_had_the_old_ones_name() {
    let harness = Harness::new().await;
    let server = harness.add_server(&[&disk(40, MIB)]);
    let saved = back_up(&harness, &server).await;
    let namesake = harness.add_server(&[&disk(41, MIB)]);
    assert_eq!(namesake.name, server.name);
    harness.cloud.remove_server(&server.id);
    assert_no(&harness, &saved, straight(&saved, &server), Code::ServerNotFound).await;
    // The old disks are not attached to it, whatever it is called.
    let mut question = straight(&saved, &server);
    question.server = namesake.id.clone();
    assert_no(&harness, &saved, question, Code::VolumeNotAttached).await;
}

/// <https://github.com/apache/cloudstack/pull/13922>
#[tokio::test]
async fn disks_of_equal_size_changed_places() {
    let harness = Harness::new().await;
    let content = [disk(42, MIB), disk(43, MIB), disk(44, MIB)];
    let server = harness.add_server(&[&content[0], &content[1], &content[2]]);
    let saved = back_up(&harness, &server).await;
    scramble(&harness, &server);
    let question = straight(&saved, &server);
    // The cloud lists them in another order from now on.
    harness.cloud.edit_server(&server.id, |server| server.volumes.reverse());
    begin_restore(&harness, &saved, question).await.unwrap();
    harness.run_jobs_to_their_end().await;
    assert!(contents(&harness, &server) == content, "each disk by its id");
}

/// <https://github.com/apache/cloudstack/issues/11257>
#[tokio::test]
async fn a_data_disk_was_taken_for_the_system_disk() {
    let harness = Harness::new().await;
    let server = harness.add_server(&[&disk(45, MIB), &disk(46, MIB)]);
    let saved = back_up(&harness, &server).await;
    assert_eq!(saved.volumes[0].role, VolumeRole::System);
    let crossed = vec![
        Pair { backup: saved.volumes[0].id.clone(), volume: server.volumes[1].id.clone() },
        Pair { backup: saved.volumes[1].id.clone(), volume: server.volumes[0].id.clone() },
    ];
    let mut question = straight(&saved, &server);
    question.mapping = Mapping::new(crossed).unwrap();
    assert_no(&harness, &saved, question, Code::DataOntoSystem).await;
}

/// <https://github.com/junkerderprovinz/bombvault/issues/252>
#[tokio::test]
async fn a_disk_was_left_out_and_only_the_log_said_so() {
    let harness = Harness::new().await;
    let server = harness.add_server(&[&disk(47, MIB), &disk(48, MIB)]);
    let saved = back_up(&harness, &server).await;
    let mut question = straight(&saved, &server);
    question.mapping = Mapping::new(question.mapping.pairs()[..1].to_vec()).unwrap();
    assert_no(&harness, &saved, question, Code::PartialRestore).await;
    // When backing up as well: what cannot be read to its end is no backup of the server.
    harness.cloud.pass_next(SimOp::ReadAt, 1);
    harness.cloud.fail_always(SimOp::ReadAt, CloudError::permanent("a disk out of reach"));
    let failed = back_up(&harness, &server).await;
    harness.cloud.clear_faults();
    assert_no(&harness, &failed, straight(&failed, &server), Code::ItemNotAvailable).await;
}

/// <https://github.com/velero-io/velero/issues/2686>
#[tokio::test]
async fn the_volume_was_attached_to_another_server() {
    let harness = Harness::new().await;
    let server = harness.add_server(&[&disk(49, MIB)]);
    let saved = back_up(&harness, &server).await;
    let other = harness.add_server(&[&disk(50, MIB)]);
    let mut question = straight(&saved, &other);
    question.server = server.id.clone();
    assert_no(&harness, &saved, question, Code::VolumeNotAttached).await;
}

/// <https://github.com/kubevirt/kubevirt/issues/19008>
#[tokio::test]
async fn a_shared_disk_was_restored_under_its_other_users() {
    let harness = Harness::new().await;
    let server = harness.add_server(&[&disk(51, MIB), &disk(52, MIB)]);
    harness.cloud.edit_server(&server.id, |server| server.volumes[1].sharing = Sharing::Shared);
    let saved = back_up(&harness, &server).await;
    assert_no(&harness, &saved, straight(&saved, &server), Code::SharedVolumeRestore).await;
}

/// <https://github.com/harvester/harvester/issues/4307>
#[tokio::test]
async fn a_server_stopped_from_inside_its_guest_was_never_restored() {
    let harness = Harness::new().await;
    let content = vec![disk(53, MIB)];
    let server = harness.add_server(&[&content[0]]);
    let saved = back_up(&harness, &server).await;
    harness.cloud.edit_server(&server.id, |server| server.status = ServerStatus::Shutoff);
    assert_yes(&harness, &saved, &server, &content).await;
}

/// <https://github.com/openstack/karbor/commit/37c197851a6a099d8c274920be62703c627b8a3d>
#[tokio::test]
async fn anyone_could_restore_what_others_had_backed_up() {
    let harness = Harness::new().await;
    let server = harness.add_server(&[&disk(54, MIB)]);
    let saved = back_up(&harness, &server).await;
    let theirs = harness.add_server_of(OTHER_PROJECT, &[&disk(55, MIB)]);
    let token = harness.token(STRANGER, OTHER_PROJECT).await;
    let stranger = harness.app.authorise(Some(&token), OTHER_PROJECT, Right::Write).await.unwrap();
    let asked =
        harness.app.check_restorable(&stranger, vec![straight(&saved, &theirs)]).await.unwrap();
    assert_eq!(asked[0].as_ref().unwrap_err().code(), Code::ItemNotFound);
    // Nor may a backup of one's own go onto another's server.
    assert_no(&harness, &saved, straight(&saved, &theirs), Code::ServerNotFound).await;
}

/// <https://bugs.launchpad.net/cinder/+bug/1869746>
#[tokio::test]
async fn a_backup_was_built_on_one_of_another_project() {
    let harness = Harness::new().await;
    let server = harness.add_server(&[&disk(56, 2 * MIB)]);
    back_up(&harness, &server).await;
    harness.cloud.edit_server(&server.id, |server| {
        server.project_id = ProjectId::new(OTHER_PROJECT);
    });
    let token = harness.token(STRANGER, OTHER_PROJECT).await;
    let stranger = harness.app.authorise(Some(&token), OTHER_PROJECT, Right::Write).await.unwrap();
    let record = harness.app.protect(&stranger, protect_request(&server, None)).await.unwrap();
    harness.run_jobs_to_their_end().await;
    let made = harness.app.get_item(&stranger, &record.items[0].id).await.unwrap();
    assert_eq!(made.method, kedge_core::checkpoint::Method::Full);
    let stored = made.volumes[0].stored.as_ref().unwrap();
    assert_eq!(stored.data_bytes, stored.read_bytes, "all of it was read");
    // The first project's repository may go: this one has everything.
    let first = harness.places.store_of(&ProjectId::new(PROJECT));
    first.break_down();
    let asked =
        harness.app.check_restorable(&stranger, vec![straight(&made, &server)]).await.unwrap();
    assert!(asked[0].is_ok(), "{asked:?}");
}

/// <https://bugs.launchpad.net/nova/+bug/1732428>
#[tokio::test]
async fn a_server_in_the_middle_of_something_was_written_to() {
    let harness = Harness::new().await;
    let server = harness.add_server(&[&disk(57, MIB)]);
    let saved = back_up(&harness, &server).await;
    for status in [
        ServerStatus::InTransition,
        ServerStatus::Resizing,
        ServerStatus::VerifyResize,
        ServerStatus::Error,
    ] {
        harness.cloud.edit_server(&server.id, |server| server.status = status);
        assert_no(&harness, &saved, straight(&saved, &server), Code::TargetBusy).await;
    }
    let gone = ServerId::asked("0e0e0e0e-0000-4000-8000-000000000000");
    let mut question = straight(&saved, &server);
    question.server = gone;
    assert_no(&harness, &saved, question, Code::ServerNotFound).await;
}
