"""git between repositories: clone by its own protocol over pipes, commit, push, log, gc and fsck."""

from scripts import needs, same_script

GIT = r"""
export HOME=$PWD GIT_CONFIG_NOSYSTEM=1 GIT_AUTHOR_DATE='1700000000 +0000' GIT_COMMITTER_DATE='1700000000 +0000'
git config --global user.name n; git config --global user.email e@example.org
git config --global init.defaultBranch main; git config --global gc.autoDetach false
git init -q a; cd a
for i in $(seq 200); do seq $i > f$i; done
git add .; git commit -qm files
for i in $(seq 8); do echo $i >> f1; git commit -qam "change $i"; done
cd ..; git clone -q file://$PWD/a b; git clone -q a c; git clone -q --bare --depth 2 file://$PWD/a d; cd b
git log --oneline | sha256sum; git shortlog -s HEAD
echo more >> f2; git commit -qam local; git push -q origin HEAD:refs/heads/pushed; git rev-parse HEAD
cd ../c; git pull -q origin pushed; git rev-parse HEAD
git gc -q --aggressive; git fsck --no-progress; echo $?; git count-objects; git repack -adq; git verify-pack -v .git/objects/pack/*.idx | tail -1 | cut -d: -f1
git -C ../d log --format=%s; git worktree add -q ../w HEAD~3; cd ../w; git status -sb; git submodule -q add ../a sub 2>/dev/null; echo $?
git grep -c 199 | wc -l; git archive HEAD | tar tf - | wc -l; git bundle create -q ../bundle HEAD; git clone -q ../bundle ../e 2>/dev/null; git -C ../e rev-list --all --count
truncate -s 20 ../c/.git/objects/pack/*.pack; git -C ../c fsck >/dev/null 2>&1; echo $?
"""


def test_repositories(platform, tmp_path):
    needs("git", "tar")
    result = same_script(platform, GIT, tmp_path)
    assert len(result.stdout.splitlines()) > 10, result
