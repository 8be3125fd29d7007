"""Arguments of calls on sockets: addresses, options, messages."""

from __future__ import annotations

import struct

from trapline.sentry.strace.call import MAX_ARRAY, Call
from trapline.sentry.strace.kinds import bytes_at, decoder, structure
from trapline.sentry.strace.kinds_files import vector
from trapline.sentry.strace.names import flags, hexadecimal, one
from trapline.sentry.strace.structs import show
from trapline.sentry.strace.text import pointer, quote

AF_UNIX, AF_INET, AF_INET6, AF_NETLINK = 1, 2, 10, 16
SOL_SOCKET, SOL_IP, SOL_TCP, SOL_IPV6 = 1, 0, 6, 41
SO_LINGER, SO_PEERCRED, SO_RCVTIMEO, SO_SNDTIMEO, SO_ERROR, SO_BINDTODEVICE = 13, 17, 20, 21, 4, 25
SCM_RIGHTS, SCM_CREDENTIALS = 1, 2
TCP_CONGESTION = 13
_OPTIONS = {SOL_SOCKET: "so", SOL_IP: "ipopt", SOL_TCP: "tcpopt", SOL_IPV6: "ipv6opt"}
_MAX_ADDRESS = 128


def _ipv6(data: bytes) -> str:
    """The text of an IPv6 address (RFC 5952)."""
    words = struct.unpack(">8H", data)
    best, length = 0, 0
    at = 0
    while at < 8:
        end = at
        while end < 8 and not words[end]:
            end += 1
        if end - at > length:
            best, length = at, end - at
        at = max(end, at + 1)
    if best == 0 and words[5] == 0xFFFF and length == 5:
        return "::ffff:" + ".".join([str(byte) for byte in data[12:]])
    texts = [f"{word:x}" for word in words]
    if length < 2:
        return ":".join(texts)
    return ":".join(texts[:best]) + "::" + ":".join(texts[best + length :])


def address(data: bytes) -> str:
    """A struct sockaddr of any family."""
    if len(data) < 2:
        return quote(data)
    (family,) = struct.unpack_from("<H", data)
    head = f"sa_family={one('family', family)}"
    if family == AF_UNIX:
        path = data[2:]
        if not path:
            return f"{{{head}}}"
        if not path[0]:
            return f"{{{head}, sun_path=@{quote(path[1:], None)}}}"
        return f"{{{head}, sun_path={quote(path.partition(bytes(1))[0], None)}}}"
    if family == AF_INET and len(data) >= 8:
        (port,) = struct.unpack_from(">H", data, 2)
        dotted = ".".join([str(byte) for byte in data[4:8]])
        return f'{{{head}, sin_port=htons({port}), sin_addr=inet_addr("{dotted}")}}'
    if family == AF_INET6 and len(data) >= 24:
        port, flow = struct.unpack_from(">HI", data, 2)
        scope = struct.unpack_from("<I", data, 24)[0] if len(data) >= 28 else 0
        return (
            f"{{{head}, sin6_port=htons({port}), sin6_flowinfo=htonl({flow}), "
            f'inet_pton(AF_INET6, "{_ipv6(data[8:24])}", &sin6_addr), sin6_scope_id={scope}}}'
        )
    if family == AF_NETLINK and len(data) >= 12:
        pid, groups = struct.unpack_from("<II", data, 4)
        return f"{{{head}, nl_pid={pid}, nl_groups={groups:08x}}}"
    return f"{{{head}, sa_data={quote(data[2:])}}}"


def _address_at(call: Call, value: int, size: int) -> str:
    if not value:
        return "NULL"
    data = call.read(value, min(size, _MAX_ADDRESS)) if size > 0 else None
    return address(data) if data is not None else pointer(value)


@decoder("sockaddr")
def _sockaddr(call: Call, value: int, size: int) -> str:
    return _address_at(call, value, size)


@decoder("sockaddr_out")
def _sockaddr_out(call: Call, value: int, size_at: int) -> str:
    size = call.number(size_at, "<i") if size_at else None
    return _address_at(call, value, size or 0)


@decoder("length")
def _length(call: Call, value: int) -> str:
    """A length that goes in and out. What went in is overwritten: only what came out is shown."""
    number = call.number(value, "<i") if value else None
    return f"[{number}]" if number is not None else pointer(value)


@decoder("socket_type")
def _socket_type(call: Call, value: int) -> str:
    more = value & ~0xF
    kind = one("socktype", value & 0xF)
    return f"{kind}|{flags('sockflags', more)}" if more else kind


@decoder("socket_protocol")
def _socket_protocol(call: Call, value: int, family: int) -> str:
    if family in (AF_INET, AF_INET6):
        return one("ipproto", value)
    return one("netlink", value) if family == AF_NETLINK else str(value)


# -- options


@decoder("socket_option")
def _socket_option(call: Call, value: int, level: int) -> str:
    group = _OPTIONS.get(level)
    return one(group, value) if group is not None else hexadecimal(value)


def _option(call: Call, value: int, level: int, option: int, size: int) -> str:
    if not value:
        return "NULL"
    if level == SOL_SOCKET and option == SO_LINGER and size >= 8:
        return structure(call, value, "linger")
    if level == SOL_SOCKET and option == SO_PEERCRED and size >= 12:
        return structure(call, value, "ucred")
    if level == SOL_SOCKET and option in (SO_RCVTIMEO, SO_SNDTIMEO) and size >= 16:
        return structure(call, value, "timeval")
    if (level == SOL_SOCKET and option == SO_BINDTODEVICE) or (level == SOL_TCP and option == TCP_CONGESTION):
        return bytes_at(call, value, size)
    if size == 4:
        number = call.number(value, "<i")
        if number is None:
            return pointer(value)
        if level == SOL_SOCKET and option == SO_ERROR:
            import errno

            return f"[{errno.errorcode.get(number, number)}]"
        return f"[{number}]"
    return bytes_at(call, value, size)


@decoder("option_value")
def _option_value(call: Call, value: int, level: int, option: int, size: int) -> str:
    return _option(call, value, level, option, size)


@decoder("option_out")
def _option_out(call: Call, value: int, level: int, option: int, size_at: int) -> str:
    return _option(call, value, level, option, (call.number(size_at, "<i") or 0) if size_at else 0)


# -- messages


def _control(call: Call, value: int, size: int) -> str:
    data = call.read(value, min(size, 4096))
    if data is None:
        return pointer(value)
    shown = []
    at = 0
    while at + 16 <= len(data):
        length, level, kind = struct.unpack_from("<Qii", data, at)
        if length < 16 or at + length > len(data):
            break
        body = data[at + 16 : at + length]
        name = one("scm", kind) if level == SOL_SOCKET else hexadecimal(kind)
        text = f"cmsg_len={length}, cmsg_level={one('socklevel', level)}, cmsg_type={name}"
        if level == SOL_SOCKET and kind == SCM_RIGHTS:
            fds = struct.unpack(f"<{len(body) // 4}i", body[: len(body) // 4 * 4])
            text += f", cmsg_data=[{', '.join([call.descriptor(fd) for fd in fds])}]"
        elif level == SOL_SOCKET and kind == SCM_CREDENTIALS and len(body) >= 12:
            text += f", cmsg_data={show('ucred', body)}"
        elif body:
            text += f", cmsg_data={quote(body)}"
        shown.append(f"{{{text}}}")
        at += (length + 7) & ~7
    return f"[{', '.join(shown)}]"


def _message(call: Call, value: int, available: int | None) -> str:
    data = call.read(value, 56) if value else None
    if data is None:
        return pointer(value)
    name, name_length, iov, count, control, control_length, how = struct.unpack("<QI4xQQQQi4x", data)
    parts = [f"msg_name={_address_at(call, name, name_length)}", f"msg_namelen={name_length}"]
    parts.append(f"msg_iov={vector(call, iov, count, available)}")
    parts.append(f"msg_iovlen={count}")
    if control and control_length:
        parts.append(f"msg_control={_control(call, control, control_length)}")
    parts.append(f"msg_controllen={control_length}")
    parts.append(f"msg_flags={flags('msg', how & 0xFFFFFFFF)}")
    return f"{{{', '.join(parts)}}}"


@decoder("message")
def _message_at(call: Call, value: int) -> str:
    return _message(call, value, call.result if call.row.name == "recvmsg" else None)


@decoder("messages")
def _messages(call: Call, value: int, count: int) -> str:
    receives = call.row.name == "recvmmsg"
    if not value or count < 0:
        return pointer(value)
    number = min(call.result if receives else count, MAX_ARRAY)
    shown = []
    for at in range(number):
        base = value + 64 * at
        length = call.number(base + 56, "<I") or 0
        text = _message(call, base, length if receives else None)
        shown.append(f"{{msg_hdr={text}{f', msg_len={length}' if receives else ''}}}")
    return f"[{', '.join(shown)}]"
