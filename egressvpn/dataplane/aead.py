"""ChaCha20-Poly1305 for packets, in place: libcrypto where it loads, else the libsodium inside PyNaCl.

One interface, chosen once when this module is imported: `open_message`, `seal_message`, `forget`. A cipher context is
process-local; it is made from the keys in the arena the first time a session is used by this process.
"""

import ctypes
import ctypes.util
import os
from typing import Final

import nacl.bindings

from egressvpn.dataplane.local import CIPHER, CONTEXT_WORDS, LENGTHS, NONCE, PARAMS, TAG_NAME, Local
from egressvpn.kernel import Octets, Row, Table, Word, foreign, kernel
from egressvpn.packet.octets import put_le64

HEADER: Final = 16  # type, receiver index, counter
TAG_BYTES: Final = 16
OSSL_PARAM_OCTET_STRING: Final = 5

_LIBCRYPTO_NAMES = (
    "EVP_CIPHER_fetch",
    "EVP_CIPHER_CTX_new",
    "EVP_CIPHER_CTX_free",
    "EVP_CIPHER_CTX_set_params",
    "EVP_CIPHER_CTX_get_params",
    "EVP_DecryptInit_ex",
    "EVP_DecryptUpdate",
    "EVP_DecryptFinal_ex",
    "EVP_EncryptInit_ex",
    "EVP_EncryptUpdate",
    "EVP_EncryptFinal_ex",
)


def _load_libcrypto() -> ctypes.CDLL | None:
    """libcrypto 3, or None when it is absent, too old, or lacks the cipher."""
    if os.environ.get("EGRESSVPN_AEAD", "libcrypto") != "libcrypto":
        return None
    for name in ("libcrypto.so.3", ctypes.util.find_library("crypto")):
        try:
            library = ctypes.CDLL(name) if name else None
        except OSError:
            continue
        if library is not None and all(hasattr(library, symbol) for symbol in _LIBCRYPTO_NAMES):
            library.EVP_CIPHER_fetch.restype = ctypes.c_void_p
            return library if library.EVP_CIPHER_fetch(None, b"ChaCha20-Poly1305", None) else None
    return None


_libcrypto = _load_libcrypto()
_libsodium = ctypes.CDLL(nacl._sodium.__file__)
AEAD: Final = "libcrypto" if _libcrypto is not None else "libsodium"


def prepare(local: Local) -> None:
    """Fill the parameters that every call shares."""
    words, octets = local.words, local.octets
    words[PARAMS : PARAMS + 10] = 0
    words[PARAMS] = octets.ctypes.data + TAG_NAME
    words[PARAMS + 1] = OSSL_PARAM_OCTET_STRING
    words[PARAMS + 3] = TAG_BYTES
    if _libcrypto is not None:
        words[CIPHER] = _libcrypto.EVP_CIPHER_fetch(None, b"ChaCha20-Poly1305", None)


_xseal = foreign(_libsodium, "crypto_aead_xchacha20poly1305_ietf_encrypt", "i", *"ppppppppp")


@kernel
def seal_cookie(key: Octets, octets: Octets, text: Word, size: Word, nonce: Word, bound: Word, bound_size: Word) -> Word:
    """XChaCha20-Poly1305 in place of `size` octets at `text`, the tag behind them, bound to those at `bound`: 1 or 0. The nonce has 24."""
    address = octets.ctypes.data
    octets[text + size + TAG_BYTES - 1] = 0  # the end is inside
    sealed = _xseal(address + text, 0, address + text, size, address + bound, bound_size, 0, address + nonce, key.ctypes.data)
    return 1 if sealed == 0 else 0


if _libcrypto is not None:
    _context_new = foreign(_libcrypto, "EVP_CIPHER_CTX_new", "p")
    _context_free = foreign(_libcrypto, "EVP_CIPHER_CTX_free", "v", "p")
    _set_params = foreign(_libcrypto, "EVP_CIPHER_CTX_set_params", "i", "p", "p")
    _get_params = foreign(_libcrypto, "EVP_CIPHER_CTX_get_params", "i", "p", "p")
    _decrypt_init = foreign(_libcrypto, "EVP_DecryptInit_ex", "i", "p", "p", "p", "p", "p")
    _decrypt_update = foreign(_libcrypto, "EVP_DecryptUpdate", "i", "p", "p", "p", "p", "i")
    _decrypt_final = foreign(_libcrypto, "EVP_DecryptFinal_ex", "i", "p", "p", "p")
    _encrypt_init = foreign(_libcrypto, "EVP_EncryptInit_ex", "i", "p", "p", "p", "p", "p")
    _encrypt_update = foreign(_libcrypto, "EVP_EncryptUpdate", "i", "p", "p", "p", "p", "i")
    _encrypt_final = foreign(_libcrypto, "EVP_EncryptFinal_ex", "i", "p", "p", "p")

    @kernel
    def forget(contexts: Table, slot: Word) -> None:
        """Free the cipher contexts of a session slot, which wipes the keys they hold."""
        base = slot * CONTEXT_WORDS
        if contexts[base] != 0:
            _context_free(contexts[base])
            _context_free(contexts[base + 1])
        contexts[base] = 0
        contexts[base + 1] = 0
        contexts[base + 2] = 0

    @kernel
    def _key(contexts: Table, words: Table, sessions: Table, slot: Word) -> None:
        forget(contexts, slot)
        base = slot * CONTEXT_WORDS
        session = sessions[slot]
        contexts[base] = _context_new()
        contexts[base + 1] = _context_new()
        _decrypt_init(contexts[base], words[CIPHER], 0, session.receive_key.ctypes.data, 0)
        _encrypt_init(contexts[base + 1], words[CIPHER], 0, session.send_key.ctypes.data, 0)
        contexts[base + 2] = session.index

    @kernel
    def open_message(
        contexts: Table, words: Table, sessions: Table, slot: Word, octets: Octets, offset: Word, length: Word, counter: Word
    ) -> Word:
        """Authenticate and decrypt in place the data message of `length` octets at `offset`: 1 or 0. The text starts at offset + HEADER."""
        if contexts[slot * CONTEXT_WORDS + 2] != sessions[slot].index:
            _key(contexts, words, sessions, slot)
        context = contexts[slot * CONTEXT_WORDS]
        put_le64(octets, NONCE + 4, counter)
        address = octets.ctypes.data
        text = address + offset + HEADER
        size = length - HEADER - TAG_BYTES
        unread = words.ctypes.data + 8 * LENGTHS
        words[PARAMS + 2] = text + size
        if _decrypt_init(context, 0, 0, 0, address + NONCE) != 1:
            return 0
        if _set_params(context, words.ctypes.data + 8 * PARAMS) != 1:
            return 0
        if size > 0 and _decrypt_update(context, text, unread, text, size) != 1:
            return 0
        return 1 if _decrypt_final(context, text + size, unread) == 1 else 0

    @kernel
    def seal_message(
        contexts: Table, words: Table, sessions: Table, slot: Word, octets: Octets, offset: Word, size: Word, counter: Word
    ) -> Word:
        """Encrypt in place the `size` octets at offset + HEADER and append the tag: 1 or 0."""
        if contexts[slot * CONTEXT_WORDS + 2] != sessions[slot].index:
            _key(contexts, words, sessions, slot)
        context = contexts[slot * CONTEXT_WORDS + 1]
        put_le64(octets, NONCE + 4, counter)
        address = octets.ctypes.data
        text = address + offset + HEADER
        unread = words.ctypes.data + 8 * LENGTHS
        words[PARAMS + 2] = text + size
        if _encrypt_init(context, 0, 0, 0, address + NONCE) != 1:
            return 0
        if size > 0 and _encrypt_update(context, text, unread, text, size) != 1:
            return 0
        if _encrypt_final(context, text + size, unread) != 1:
            return 0
        return 1 if _get_params(context, words.ctypes.data + 8 * PARAMS) == 1 else 0

else:
    _open = foreign(_libsodium, "crypto_aead_chacha20poly1305_ietf_decrypt", "i", *"ppppppppp")
    _seal = foreign(_libsodium, "crypto_aead_chacha20poly1305_ietf_encrypt", "i", *"ppppppppp")

    @kernel
    def forget(contexts: Table, slot: Word) -> None:
        """libsodium keeps no context."""
        contexts[slot * CONTEXT_WORDS] = 0

    @kernel
    def open_message(
        contexts: Table, words: Table, sessions: Table, slot: Word, octets: Octets, offset: Word, length: Word, counter: Word
    ) -> Word:
        """Authenticate and decrypt in place the data message of `length` octets at `offset`: 1 or 0. The text starts at offset + HEADER."""
        put_le64(octets, NONCE + 4, counter)
        address = octets.ctypes.data
        text = address + offset + HEADER
        key: Row = sessions[slot].receive_key.ctypes.data
        unread = words.ctypes.data + 8 * LENGTHS
        return 1 if _open(text, unread, 0, text, length - HEADER, 0, 0, address + NONCE, key) == 0 else 0

    @kernel
    def seal_message(
        contexts: Table, words: Table, sessions: Table, slot: Word, octets: Octets, offset: Word, size: Word, counter: Word
    ) -> Word:
        """Encrypt in place the `size` octets at offset + HEADER and append the tag: 1 or 0."""
        put_le64(octets, NONCE + 4, counter)
        address = octets.ctypes.data
        text = address + offset + HEADER
        key: Row = sessions[slot].send_key.ctypes.data
        unread = words.ctypes.data + 8 * LENGTHS
        return 1 if _seal(text, unread, text, size, 0, 0, 0, address + NONCE, key) == 0 else 0
