"""What people reported elsewhere of directories that they share with VMs, and the check of each.

What lives here: the list. What must not: what the checks do (`files`, `directories`, `people`), and what they found.
Each report was read in its own tracker; the words here are of what is done here.
"""

from __future__ import annotations

from tests.conformance.reports import directories, files, people
from tests.conformance.reports.guest import Otherwise, Report

_NO_PAGES = (
    "with `cache=none` Linux's 9P client keeps no pages, so it refuses every shared mapping of a file that is open for "
    "writing: mount with `cache=mmap`"
)
_NO_SEEK = (
    "Linux 6.1's 9P client gives what it has read ahead of a directory before it heeds the new position, and sends "
    "nothing"
)

REPORTS = (
    # Files that are open while their names go or change
    Report(
        "kata-containers/kata-containers#9700",
        "make a file, unlink it, ftruncate and write it (iperf3)",
        files.truncate_an_unlinked_file,
    ),
    Report(
        "kata-containers/runtime#1002",
        "map a file that is open and unlinked (LTP's mmap1)",
        files.map_an_unlinked_file,
        ("none", "mmap"),
        (Otherwise("EINVAL", _NO_PAGES, settings="none"),),
    ),
    Report("microsoft/WSL#8443", "open, rename, fstat and write a file (InnoDB)", files.look_at_a_renamed_open_file),
    Report(
        "conclusiveeng/lib9p#19",
        "fstat, fchmod, fchown and futimens of an unlinked file (FreeBSD's pkg)",
        files.change_an_unlinked_file,
    ),
    Report(
        "nfs-ganesha/nfs-ganesha#980", "write to an unlinked open file", files.write_an_unlinked_file, ("none", "loose")
    ),
    Report(
        "hyperhq/hyperstart#74", "a here-document of 100 KB in bash, TMPDIR in the share", files.a_large_here_document
    ),
    # Mappings, sizes and room
    Report(
        "kata-containers/runtime#358",
        "map a database for reading, MAP_SHARED (bbolt)",
        files.map_for_reading,
        ("none", "mmap"),
        (Otherwise("EINVAL", _NO_PAGES, settings="none"),),
    ),
    Report(
        "clearcontainers/agent#92",
        "map a file for writing, MAP_SHARED, and read it on the host (DPDK)",
        files.map_for_writing,
        ("none", "mmap"),
        (Otherwise("EINVAL", _NO_PAGES, settings="none"),),
    ),
    Report("google/gvisor#1006", "read a file, copy another over it, read it again", files.overwrite_what_was_read),
    Report(
        "docker/for-mac#7494",
        "the host writes a longer text into a file that the guest has read, and appends",
        files.the_host_writes_more,
    ),
    Report("docker/for-mac#6643", "read behind 2 GiB in a file of 3 GB, and its end", files.read_behind_two_gigabytes),
    Report("docker/desktop-feedback#570", "a database file with holes: its room on the host", files.holes_take_no_room),
    Report(
        "kata-containers/runtime#687",
        "fallocate(2)",
        files.preallocate,
        ("none",),
        (Otherwise("EOPNOTSUPP", "neither 9P2000.L nor Linux's client has fallocate"),),
    ),
    Report(
        "nanovms/nanos#2051",
        "open(2) with O_TMPFILE",
        files.a_file_without_a_name,
        ("none",),
        (Otherwise("EOPNOTSUPP", "9P2000.L makes files by their names alone"),),
    ),
    Report(
        "kata-containers/tests#2358",
        "give a file a capability (dnf -y update)",
        files.a_capability_of_a_file,
        ("none", "mapped"),
        (
            Otherwise(
                "EOPNOTSUPP",
                "under `passthrough` no attribute is written that the host's kernel acts on; `mapped-xattr` keeps it",
                settings="none",
            ),
        ),
    ),
    # Times
    Report("kubernetes/minikube#1375", "stat a file 50 times: its time stays", files.times_stay),
    Report(
        "microsoft/WSL#11750",
        "touch -r: copy a time with nanoseconds",
        files.copy_times,
        ("none",),
        (
            Otherwise(
                "the time: 1700000000000000000, not 1700000000123456789",
                "Linux's 9P client cuts times that are set to whole seconds",
            ),
        ),
    ),
    Report(
        "microsoft/WSL#3556",
        "fsync a file that is open for reading, and a directory (git)",
        files.sync_a_read_only_descriptor,
    ),
    # Descriptors
    Report("podman-container-tools/podman#16106", "300 open files at a time (MySQL, MongoDB)", files.many_open_files),
    Report(
        "kubevirt/kubevirt#13589",
        "open more files than the mount is allowed (100), close them, go on",
        files.more_open_files_than_are_allowed,
        ("limited",),
    ),
    Report(
        "libkrun/libkrun#505",
        "600 files that the guest remembers, with 256 descriptors on the host",
        people.many_remembered_files,
        ("few",),
    ),
    Report(
        "docker/for-mac#6783",
        "write 600 files, one after the other, with 256 descriptors on the host, and read them",
        people.many_written_files,
        ("few",),
    ),
    Report(
        "google/gvisor#7663",
        "make, look at and remove 20 files: none is open on the host any more",
        people.deleted_files_are_free,
        ("loose",),
    ),
    # Directories
    Report("conclusiveeng/lib9p#18", "rm -rf, with the directory open", directories.remove_a_tree),
    Report(
        "microsoft/WSL#2077",
        "remove 400 files while they are listed (Go's os.RemoveAll)",
        directories.remove_while_listing,
    ),
    Report(
        "superradcompany/microsandbox#1157",
        "list 800 files, a little at a time",
        directories.list_many_files,
        ("few",),
    ),
    Report(
        "microsoft/WSL#5074",
        "read a part of a listing, go back to its beginning, read all (PHP's iterators)",
        directories.rewind_a_partly_read_listing,
        ("none",),
        (Otherwise("lseek to the beginning is not heeded", _NO_SEEK, kernels="6.1"),),
    ),
    Report(
        "koverstreet/bcachefs-tools#652",
        "read a listing, go back to its beginning, thrice",
        directories.rewind_a_read_listing,
    ),
    Report(
        "microsoft/WSL#12154",
        "list a directory with a 32-bit program",
        directories.list_with_a_32_bit_program,
        ("none", "mapped"),
    ),
    Report(
        "microsoft/WSL#12897",
        "rename a directory that is open, with a file open in it",
        directories.rename_a_directory_in_use,
    ),
    Report("microsoft/WSL#14", "rename a directory with files (npm)", directories.rename_a_staging_directory),
    Report("rfjakob/gocryptfs#584", "getcwd in shells within shells", directories.a_directory_in_use_is_known),
    Report(
        "kata-containers/runtime#2493",
        "overlay: the share below, changes in memory",
        directories.an_overlay_above_the_share,
        ("none", "mapped"),
    ),
    # Names and links
    Report("google/gvisor#8688", "make a hard link (apt-get)", directories.hard_links, ("none", "mapped")),
    Report(
        "google/gvisor#6739", "change a file by one of its names, look by the other", directories.hard_links, ("loose",)
    ),
    Report("lima-vm/lima#829", "links that the host made", directories.links_of_the_host, ("none", "mapped")),
    Report(
        "microsoft/WSL#3",
        "npm's .bin: a relative link to a program, run in the guest and on the host",
        directories.a_program_by_a_relative_link,
        ("none", "links"),
    ),
    Report("microsoft/WSL#2441", "names with , : = and such (rsync of a Maildir)", directories.odd_names),
    Report(
        "google/gvisor#7895",
        "renameat2(2) with RENAME_EXCHANGE",
        directories.exchange_two_names,
        ("none",),
        (Otherwise("EINVAL", "9P2000.L has a plain rename, and Linux's client refuses every flag"),),
    ),
    Report(
        "gluster/glusterfs#3907",
        "renameat2(2) with RENAME_NOREPLACE",
        directories.rename_without_replacing,
        ("none",),
        (Otherwise("EINVAL", "9P2000.L has a plain rename, and Linux's client refuses every flag"),),
    ),
    # What the host changes meanwhile
    Report(
        "microsoft/WSL#2152",
        "a directory that went on the host is made again",
        directories.the_host_removes_a_directory,
    ),
    Report(
        "docker/for-mac#6692",
        "the host removes a directory and makes it anew",
        directories.the_host_replaces_a_directory,
    ),
    Report(
        "ydb-platform/nbs#7151",
        "a file that the host replaces 10 times by renaming",
        directories.the_host_replaces_files,
    ),
    Report(
        "arighi/virtme-ng#187",
        "the host replaces a file that the guest has open",
        directories.the_host_replaces_an_open_file,
        ("none",),
        (
            Otherwise(
                "the old content while the old file is open",
                "Linux's 9P client goes by what it knows of a name for as long as a program has the file open",
            ),
        ),
    ),
    Report(
        "google/gvisor#7297", "the host exchanges a link in a chain of links (Kubernetes)", directories.chained_links
    ),
    Report(
        "kubernetes/minikube#1551",
        "inotify: the guest's own change, and the host's",
        people.told_of_changes,
        ("none", "loose"),
        (
            Otherwise(
                "not told of the guest's own change",
                "with `cache=none` the guest's kernel makes a new inode for each use of a file, and watches hang on "
                "inodes: mount with `cache=loose`, or poll",
                settings="none",
            ),
            Otherwise("not told of the host's change", "9P has no message for it: poll", settings="loose"),
        ),
    ),
    # Locks and databases
    Report(
        "kata-containers/kata-containers#3410",
        "flock(2) held here is refused to others: another program, the host, and the other way round",
        people.a_lock_keeps_others_out,
    ),
    Report("microsoft/WSL#2395", "SQLite: two processes write", people.sqlite_from_two_processes),
    Report(
        "openclaw/openclaw#120595",
        "SQLite with a write-ahead log: two processes write",
        people.sqlite_with_a_write_ahead_log,
        ("mmap",),
    ),
    Report(
        "docker/for-mac#6270",
        "PostgreSQL's data directory: made 0700 by its user, linked, synced",
        people.a_database_directory,
        ("mapped", "user"),
    ),
    # Owners and modes
    Report(
        "lima-vm/lima#1169", "chown -R of a tree of the host's (MySQL)", people.give_all_to_a_user, ("mapped", "user")
    ),
    Report("lima-vm/lima#231", "chmod and chown of a tree of the host's", people.change_modes, ("mapped", "user")),
    Report(
        "lima-vm/lima#5",
        "root looks into a directory that is its user's alone",
        people.a_directory_for_its_user_alone,
        ("mapped", "user"),
    ),
    Report(
        "abiosoft/colima#83",
        "chown -R and chmod 0700, then the user writes (Redis)",
        people.an_entry_point,
        ("mapped", "user"),
    ),
    Report(
        "utmapp/UTM#7103", "chown, then every user looks", people.every_user_sees_one_owner, ("none", "mapped", "user")
    ),
    Report(
        "phdeniel/nfs-ganesha#93",
        "unpack an archive with links and owners as root",
        people.unpack_an_archive_with_links,
        ("mapped", "user"),
        (
            Otherwise(
                "tar says nothing, and the link is the serving user's",
                "with `links=real` a link is one on the host, and has no attribute to keep another owner in",
                settings="user",
            ),
        ),
    ),
    Report(
        "geerlingguy/drupal-vm#85",
        "dpkg installs a package with owners, twice",
        people.install_a_package,
        ("none", "user"),
    ),
    Report("docker/for-win#6284", "git init, commit, clone, status, as root", people.clone_a_repository, ("user",)),
    Report(
        "docker/for-mac#7406",
        "the same as a user of the guest: the directories are theirs",
        people.clone_as_a_user,
        ("mapped",),
    ),
    Report(
        "superradcompany/microsandbox#1177",
        "git reset --hard in a tree of the host's: git status is clean on both sides",
        people.both_sides_have_a_clean_tree,
        ("links",),
    ),
    Report(
        "Mic92/nixos-shell#63",
        "a user saves with a backup: touch, rename, copy of the mode",
        people.save_like_an_editor,
        ("mapped", "user"),
    ),
    Report(
        "seaweedfs/seaweedfs#8134",
        "what rsync -a does for files with odd owners",
        people.transfer_like_rsync,
        ("none", "mapped", "user"),
    ),
    Report(
        "stacklok/go-microvm#30",
        "a user that the host does not have runs a program of the host's",
        people.run_a_program_as_a_user,
        ("mapped", "user"),
    ),
    Report(
        "devsy-org/devsy#778",
        "chown -R over a git repository of the host's, then its new owner commits",
        people.a_tree_that_git_made_on_the_host,
        ("user",),
    ),
    Report(
        "libkrun/libkrun#383",
        "an owner of the guest for the host's user (`--map-owner`): git status finds no dubious ownership",
        people.an_owner_of_the_guest,
        ("owner",),
    ),
    Report("docker/sbx-releases#345", "hide `node_modules` and `**/.env` (`--hide`)", people.hidden_names, ("hidden",)),
    Report("docker/compose#6470", "the same", people.hidden_names, ("hidden",)),
    Report(
        "landlock-lsm/linux#45",
        "Landlock in the guest: a directory is allowed, and a file in it read",
        people.confined_by_landlock,
        ("none", "loose"),
        (
            Otherwise(
                "EACCES",
                "with `cache=none` the guest's kernel forgets an inode that nobody uses, with the rule that hangs on "
                "it: mount with `cache=loose`",
                settings="none",
            ),
        ),
    ),
)
"""In the order of the page."""

OWN = (
    Report(
        "descriptors",
        "flock(2), then open and close the file once more in the same program",
        people.a_second_descriptor_is_closed,
        ("none",),
        (
            Otherwise(
                "the host gets the lock",
                "Linux's 9P client sends the unlock that it sends for fcntl(2), where a close lets go of all",
            ),
        ),
    ),
    Report("flock", "the table of locks in file-server.md, all cells", people.the_table_of_locks),
    Report("sqlite", "SQLite in the guest and on the host in one database", people.sqlite_beside_the_host),
    Report("seek", "offsets of a listing that was read stay good while names go", directories.seek_to_told_offsets),
    Report("utf8", "names that are not UTF-8, and what does not show itself", directories.names_that_are_not_utf8),
    Report("case", "names that differ in case", directories.upper_and_lower_case),
    Report("types", "listings tell types", directories.an_entry_for_each_file, ("none", "mapped")),
    Report("links", "chown -R over links of the host's", people.give_links_of_the_host_to_a_user, ("mapped", "user")),
    Report(
        "modes", "root writes to files and directories that are read-only", people.modes_that_keep_root_out, ("user",)
    ),
    Report(
        "odd modes",
        "tar -xp and cp -a as root, twice: setuid, sticky and read-only files and directories",
        people.odd_modes_are_unpacked,
        ("none", "mapped", "user"),
    ),
    Report(
        "install",
        "install -m and -o, sed -i over read-only files and directories",
        people.programs_are_installed,
        ("user",),
    ),
    Report("gc", "git gc, repack and fsck in a tree of the host's", people.garbage_is_collected, ("user", "links")),
    Report("modules", "a module cache: 0444 and 0555", directories.read_only_directories, ("none", "user")),
    Report("preallocate", "posix_fallocate(3)", files.preallocate_as_posix_has_it),
    Report("names", "owners have names", people.owners_by_name, ("none", "user")),
    Report(
        "upper",
        "overlay: changes in the share, too",
        directories.an_overlay_in_the_share,
        ("none", "mapped"),
        (
            Otherwise(
                "EINVAL",
                "files are changed, made and removed; what the lower directory has is not renamed, since Linux's 9P "
                "client refuses the flags of renameat2(2) by which an overlay leaves whiteouts and swaps directories",
            ),
        ),
    ),
    Report(
        "append",
        "the host appends to a file that the guest has open",
        files.the_host_appends_to_an_open_file,
        ("none", "mmap"),
        (
            Otherwise(
                "the lines behind them: b'\\x00\\x00\\x00\\x00\\x00\\x00\\x00', not b'second\\n'",
                "Linux 6.12's client reads the new size and keeps its old last page: open the file anew, or mount with "
                "`cache=none`",
                settings="mmap",
                kernels="6.12",
            ),
        ),
    ),
    Report(
        "clock",
        "the guest's clock is an hour behind the host's, and a file is written",
        files.a_clock_that_is_behind,
        ("none",),
        (
            Otherwise(
                "the file is of the future: make(1) tells of clock skew",
                "times are the host's: keep the guest's clock in step (`chrony` with `ptp_kvm`, the VMM's time device)",
            ),
        ),
    ),
    Report(
        "full",
        "a full disk is told",
        files.a_full_disk,
        ("none", "mmap"),
        (
            Otherwise(
                "told at fsync alone: ENOSPC",
                "with `cache=mmap` the guest writes later since Linux 6.4, unless `directio` is given",
                settings="mmap",
                kernels="6.12",
            ),
        ),
    ),
)
"""Further checks of this kind, without a report."""
