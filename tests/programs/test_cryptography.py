"""Keys and agents: programs that lock memory, ask for randomness and talk to a helper over a unix socket."""

from scripts import needs, same_script

SSH = r"""
ssh-keygen -q -t ed25519 -N '' -f key; ssh-keygen -lf key.pub | wc -w
ssh-keygen -y -f key | cut -d' ' -f1,2 | cmp - <(cut -d' ' -f1,2 key.pub); echo $?
eval $(ssh-agent -a $PWD/agent) > /dev/null; ssh-add key 2> /dev/null; ssh-add -l | wc -l
echo text > text; ssh-keygen -q -Y sign -n file -f key text 2> /dev/null; ls text.sig; ssh-agent -k > /dev/null; echo $?
ssh -o BatchMode=yes -o ConnectTimeout=5 -p 1 127.0.0.1 true 2> /dev/null; echo $?
"""

OPENSSL = r"""
openssl speed -seconds 1 -bytes 1024 sha256 > said 2> /dev/null; echo $?; grep -c '^sha256' said
openssl rand -hex 8 | wc -c; echo text | openssl dgst -sha256; openssl prime 97
openssl genpkey -algorithm ed25519 -out key; openssl pkey -in key -pubout -out public; echo text > text
openssl pkeyutl -sign -rawin -inkey key -in text -out signed; openssl pkeyutl -verify -rawin -pubin -inkey public -in text -sigfile signed
"""


def test_ssh_keys_and_agent(platform, tmp_path):
    needs("ssh-keygen", "ssh-agent", "ssh-add", "ssh")
    same_script(platform, SSH, tmp_path)


def test_openssl(platform, tmp_path):
    """Its measurement counts by SIGALRM."""
    needs("openssl")
    same_script(platform, OPENSSL, tmp_path)
