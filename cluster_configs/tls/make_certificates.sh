#!/usr/bin/env bash
# Makes the certificates of a Dask cluster that talks TLS: an authority of its own, and
# a certificate with its key for each role.
#
#   ./make_certificates.sh FOLDER [HOST ...]
#
# Each HOST is a name or an address that the machines of the cluster have; this machine's
# own are added. Whoever has one of the keys can run anything on the cluster: keep them
# to yourself. The authority's key, ca.key, is only needed to make more certificates.
# DAYS=365 says for how long they hold.
set -euo pipefail
umask 077

if [[ $# -lt 1 || $1 == -* ]]; then
    echo "Usage: $0 FOLDER [HOST ...]" >&2
    exit 2
fi
folder=$1
shift
if [[ -e $folder ]]; then
    echo "$folder exists: choose another folder, or remove it first." >&2
    exit 1
fi

names="DNS:localhost,IP:127.0.0.1,DNS:$(hostname)"
for host in "$@"; do
    if [[ $host =~ ^[0-9.]+$ || $host == *:* ]]; then
        names+=",IP:$host"
    else
        names+=",DNS:$host"
    fi
done

mkdir -p "$folder"
cd "$folder"
key=(-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes)
days=(-days "${DAYS:-365}")

openssl req -x509 "${key[@]}" "${days[@]}" -keyout ca.key -out ca.pem \
    -subj "/CN=daskgmm cluster authority" \
    -addext "keyUsage=critical,keyCertSign,cRLSign" 2>/dev/null

for role in scheduler worker client; do
    openssl req -new "${key[@]}" -keyout "$role.key" -out "$role.csr" \
        -subj "/CN=dask $role" 2>/dev/null
    # Schedulers and workers are called and call; so all may be used both ways.
    openssl x509 -req "${days[@]}" -in "$role.csr" -CA ca.pem -CAkey ca.key \
        -CAcreateserial -out "$role.pem" 2>/dev/null -extfile <(
            echo "subjectAltName=$names"
            echo "basicConstraints=critical,CA:FALSE"
            echo "keyUsage=critical,digitalSignature"
            echo "extendedKeyUsage=serverAuth,clientAuth"
        )
    rm "$role.csr"
done
rm -f ca.srl
openssl verify -CAfile ca.pem scheduler.pem worker.pem client.pem >/dev/null
chmod 600 ./*.key
chmod 644 ./*.pem
echo "The certificates are in $PWD, for $names."
