#!/usr/bin/env bash
# Transfer the cluster's models and images as signed files to a machine without a network. Needs only bash and docker; to
# import images on a machine that has none of ours yet, openssl or minisign too.
#
#   scripts/bundle.sh keygen NAME                 generate NAME.key (signs) and NAME.pub (verifies)
#   scripts/bundle.sh export DIR [MODEL ...]      export models (default: all in the store) and every image of the cluster
#   scripts/bundle.sh verify DIR --key NAME.pub   verify every byte against the signature
#   scripts/bundle.sh import DIR --key NAME.pub   verify, load the images, import the models into the store
#
#   --key FILE          the exporter's public key
#   --sign-with FILE    the secret key (bundle.key, generated if missing)
#   --volume-size SIZE  maximum size of one file of the bundle, such as 700MB (default 4GB)
#   --skip-images       models only
#   --allow-older       import models that are older than those in the store
#   --help              this text
#
# Safe to interrupt: the same command resumes. The importing machine needs this checkout too, for the compose files and
# models.yaml. Format of a bundle: docs/bundle.md.
#
# exit status:  0 done   1 the bundle is rejected, or no space left   2 a wrong option   69 Docker cannot be used
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/docker.sh
. scripts/docker.sh
# shellcheck source=scripts/say.sh
. scripts/say.sh

# Folder of the archive of `docker save` before it goes into the volumes; removed when the bundle is complete.
readonly SAVED=.images
# Prefix of an Ed25519 public key in DER (RFC 8410), in octal for printf.
readonly ED25519_HEAD='\060\052\060\005\006\003\053\145\160\003\041\000'

command=${1:-} place='' names=() key='' sign_with='' volume_size='' images=yes older=() scratch=''

options() {
  while (($#)); do
    case $1 in
      --key=* | --sign-with=* | --volume-size=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" && continue ;;
      --key | --sign-with | --volume-size)
        [[ -n ${2:-} ]] || stop 2 "$1 needs a value." "See scripts/bundle.sh --help."
        case $1 in --key) key=$2 ;; --sign-with) sign_with=$2 ;; *) volume_size=$2 ;; esac
        shift
        ;;
      --skip-images) images=no ;;
      --allow-older) older=(--allow-older) ;;
      --help | -h) usage && exit 0 ;;
      -*) stop 2 "There is no option $1." "scripts/bundle.sh --help lists the options." ;;
      *) if [[ -z $place ]]; then place=$1; else names+=("$1"); fi ;;
    esac
    shift
  done
}

# Absolute path, as Docker requires it.
absolute() {
  case $1 in /*) printf '%s' "$1" ;; .) printf '%s' "$PWD" ;; *) printf '%s/%s' "$PWD" "${1#./}" ;; esac
}

# Owner of a folder: the registry reads and writes it as that user.
owner() { stat -c %u "$1"; }

check_host() {
  check_docker || stop 69 "Docker: $detail." "$fix"
  check_compose || stop 69 "Compose: $detail." "$fix"
}

# Set `stack` to the compose file that minio runs from or, if it does not run, to that of $1: online or cluster.
choose_stack() {
  local id from=''
  id=$(online ps --all --quiet minio 2>/dev/null | head -1) || id=''
  [[ -z $id ]] || from=$(docker inspect --format '{{index .Config.Labels "com.docker.compose.project.config_files"}}' "$id" 2>/dev/null) || from=''
  if [[ $from == *"$CLUSTER_FILE"* || (-z $from && $1 == cluster) ]]; then stack=("${CLUSTER[@]}"); else stack=("${ONLINE[@]}"); fi
  [[ -t 1 ]] || export COMPOSE_PROGRESS=quiet
  up_healthy "${stack[@]}" || stop 69 "minio and registry do not become healthy." "See why: docker compose logs minio registry"
}

# in_registry MODE ARGUMENT...: run the registry's program with its store and the folder at /bundle, as its owner.
in_registry() {
  local mode=$1
  shift
  "${stack[@]}" run --rm --no-deps -T --user "$(owner "$place"):10001" --volume "$place:/bundle$mode" registry "$@"
}

# isolated ARGUMENT...: run the registry's program with the folder read-only and our copy of the manifest, without network
# and store.
isolated() {
  docker run --rm --network none --read-only --cap-drop ALL --user "$(owner "$place")" --volume "$place:/bundle:ro" \
    --volume "$scratch/manifest.json:/bundle/manifest.json:ro" "$image" "$@"
}

make_keys() {
  local folder name
  folder=$(dirname "$1") name=$(basename "$1")
  mkdir -p "$folder"
  folder=$(absolute "$folder")
  docker run --rm --network none --read-only --cap-drop ALL --user "$(owner "$folder")" --volume "$folder:/keys" \
    "$image" keygen --output "/keys/$name" | sed "s,^/keys/,$folder/," || stop 1 "No keys were generated."
}

# Save the images of the cluster, unless the same IDs are saved already.
save_images() {
  local wanted image file=$place/$SAVED list=''
  wanted=$(plan cluster | sed -n 's/^image'$'\t''\([^'$'\t'']*\).*/\1/p') && [[ -n $wanted ]] ||
    stop 1 "The plan of $CLUSTER_FILE could not be read." "See its message above."
  for image in $wanted; do
    local id
    id=$(docker image inspect --format '{{.Id}}' "$image" 2>/dev/null) ||
      stop 1 "The image $image is missing." "scripts/offline-setup.sh builds or pulls it; --skip-images leaves the images out."
    list+="$image $id"$'\n'
  done
  if [[ -f $file/images.tar && -f $file/images.txt && $(<"$file/images.txt") == "${list%$'\n'}" ]]; then
    note "the images are saved already"
    return
  fi
  mkdir -p "$file"
  note "docker save of $(grep -c . <<<"$wanted") images"
  rm -f "$file/images.txt"
  # shellcheck disable=SC2086  # one word an image
  docker save --output "$file/images.tar" $wanted || stop 1 "docker save failed." "Is there space left in $place?"
  printf '%s' "$list" >"$file/images.txt"
}

do_export() {
  step "Bundle"
  mkdir -p "$place" || stop 1 "Cannot create $place."
  sign_with=${sign_with:-bundle.key}
  if [[ ! -e $sign_with && $sign_with == bundle.key ]]; then
    note "generating bundle.key and bundle.pub"
    make_keys bundle
  fi
  [[ -r $sign_with ]] || stop 2 "The key $sign_with cannot be read." "scripts/bundle.sh keygen NAME generates NAME.key and NAME.pub."
  choose_stack online
  local arguments=(--output /bundle --sign-with - ${volume_size:+--volume-size "$volume_size"})
  if [[ $images == yes ]]; then
    [[ -f $place/manifest.json.minisig ]] || save_images
    [[ ! -d $place/$SAVED ]] || arguments+=(--images "/bundle/$SAVED")
  fi
  in_registry '' export "${arguments[@]}" ${names[@]+"${names[@]}"} <"$sign_with" ||
    stop 1 "The bundle is not complete." "Fix the problem above and run the same command again; it resumes."
  rm -rf "${place:?}/$SAVED"
  note "Carry $place to the other machine, and ${sign_with%.key}.pub by another way. There, in the same checkout:"
  note "   scripts/bundle.sh import DIR --key ${sign_with##*/}" | sed 's/\.key$/.pub/'
}

# The public key in one line, from a file or as given.
key_text() { if [[ -r $key ]]; then sed -n 2p "$key"; else printf '%s' "$key"; fi; }

# Without our image: signature by minisign or openssl, volumes by sha256sum.
verify_by_hand() {
  local text
  text=$(key_text)
  [[ $text =~ ^[A-Za-z0-9+/]{56}$ ]] || stop 2 "$key is not a public key." "Use the file NAME.pub that bundle.sh keygen generated."
  if command -v minisign >/dev/null 2>&1; then
    minisign -V -q -P "$text" -m "$scratch/manifest.json" || refuse "the signature of manifest.json is invalid, or made with another key"
  elif command -v openssl >/dev/null 2>&1; then
    verify_with_openssl "$text" || refuse "the signature of manifest.json is invalid, or made with another key"
  else
    stop 69 "Neither openssl nor minisign is installed to verify the signature." "Install one of them, or load the registry's image by hand."
  fi
  note "the signature of manifest.json is valid"
  sed -n 's/^{"name": "\(volume-[0-9]*\.tar\)", "size": [0-9]*, "sha256": "\([0-9a-f]\{64\}\)".*/\2  \1/p' "$scratch/manifest.json" >"$scratch/sums"
  [[ -s $scratch/sums ]] || refuse "manifest.json names no volume"
  (cd "$place" && sha256sum --check --quiet "$scratch/sums" 2>&1) || refuse "the volumes named above are missing or were changed"
  note "every volume is valid"
}

# minisign's signature: 2 bytes "ED", 8 bytes key id, 64 bytes Ed25519 over the file's BLAKE2b.
verify_with_openssl() {
  sed -n 2p "$scratch/manifest.json.minisig" | openssl base64 -d -A >"$scratch/signature"
  openssl base64 -d -A <<<"$1" >"$scratch/key"
  [[ $(head -c 2 "$scratch/signature") == ED && $(head -c 2 "$scratch/key") == Ed ]] || return 1
  cmp -s <(head -c 10 "$scratch/signature" | tail -c 8) <(head -c 10 "$scratch/key" | tail -c 8) || return 1
  { printf '%b' "$ED25519_HEAD" && tail -c 32 "$scratch/key"; } >"$scratch/key.der"
  tail -c 64 "$scratch/signature" >"$scratch/ed25519"
  openssl dgst -blake2b512 -binary "$scratch/manifest.json" >"$scratch/digest"
  openssl pkeyutl -verify -pubin -keyform DER -inkey "$scratch/key.der" -rawin -in "$scratch/digest" \
    -sigfile "$scratch/ed25519" >/dev/null 2>&1
}

refuse() { stop 1 "$place: $1." "Copy it again from the exporting machine."; }

do_verify() {
  [[ -f $place/manifest.json && -f $place/manifest.json.minisig ]] ||
    stop 1 "$place is not a complete bundle: manifest.json or manifest.json.minisig is missing." "Copy every file of it."
  # A disk may give other bytes when it is read again: from here on, only these copies are read.
  local name
  for name in manifest.json manifest.json.minisig; do
    (umask 022 && cat "$place/$name" >"$scratch/$name") || stop 1 "$place/$name cannot be read."
  done
  if docker image inspect "$image" >/dev/null 2>&1; then
    isolated verify /bundle --key "$(key_text)" || stop 1 "The bundle is rejected."
  else
    note "the registry's image is missing: verifying with openssl or minisign, and sha256sum"
    verify_by_hand
  fi
}

# The images in the manifest, each with its ID.
manifest_images() {
  sed -n '/^{"name": "[a-z0-9-]*\.tar", .*"images": \[/p' "$scratch/manifest.json" |
    grep -o '{"name": "[^"]*", "id": "sha256:[0-9a-f]*"}' | sed 's/{"name": "\(.*\)", "id": "\(.*\)"}/\1 \2/'
}

load_images() {
  local name id missing=0 volume member digest
  while read -r name id; do
    [[ $(docker image inspect --format '{{.Id}}' "$name" 2>/dev/null) == "$id" ]] || missing=$((missing + 1))
  done < <(manifest_images)
  if ((missing == 0)); then
    note "no image is missing"
    return
  fi
  note "copying the images to $scratch"
  digest=$(sed -n 's/^{"name": "images\.tar", "size": [0-9]*, "sha256": "\([0-9a-f]\{64\}\)", .*/\1/p' "$scratch/manifest.json")
  while read -r volume member; do
    tar -xOf "$place/$volume" "$member"
  done < <(sed -n 's/^{"name": "\(volume-[0-9]*\.tar\)", "size"/\1 &/p' "$scratch/manifest.json" |
    awk '{ volume = $1; while (match($0, /"member": "images\.tar[^"]*"/)) {
      print volume, substr($0, RSTART + 11, RLENGTH - 12); $0 = substr($0, RSTART + RLENGTH) } }') >"$scratch/images.tar" ||
    stop 1 "The images cannot be copied to $scratch." "Is there space left? TMPDIR=FOLDER chooses another folder."
  sha256sum --check --status <<<"$digest  $scratch/images.tar" || refuse "the images are not those that were verified"
  note "loading the images"
  docker load --input "$scratch/images.tar" || stop 1 "docker load failed." "See its message above. Is there space left where Docker keeps images?"
  rm "$scratch/images.tar"
}

do_import() {
  step "Verifying every byte"
  do_verify
  if [[ $images == yes ]]; then
    step "Images"
    load_images
  fi
  docker image inspect "$image" >/dev/null 2>&1 || stop 1 "The image $image is neither on this machine nor in the bundle."
  step "Models"
  choose_stack cluster
  in_registry :ro import /bundle --key "$(key_text)" ${older[@]+"${older[@]}"} || stop 1 "Not all models were imported." "Fix the problem above and run the same command again."
  printf '\n%sEverything is imported.%s Check it and start the cluster:\n' "$green" "$plain"
  printf '   scripts/doctor.sh\n   docker compose -f %s up -d\n' "$CLUSTER_FILE"
}

interrupted() {
  trap '' INT TERM
  printf '\n' >&2
  warn "Interrupted. To resume, run the same command again."
  exit 130
}

(($# == 0)) || shift
case $command in
  --help | -h) usage && exit 0 ;;
  keygen | export | verify | import) ;;
  *) stop 2 "scripts/bundle.sh keygen, export, verify or import; not '$command'." "See scripts/bundle.sh --help." ;;
esac
options "$@"
[[ -n $place ]] || stop 2 "scripts/bundle.sh $command needs $([[ $command == keygen ]] && echo 'a NAME' || echo 'the folder of the bundle')."
[[ $command != verify && $command != import || -n $key ]] ||
  stop 2 "scripts/bundle.sh $command needs --key NAME.pub, the exporter's public key."
trap interrupted INT TERM
scratch=$(mktemp -d "${TMPDIR:-/var/tmp}/bundle.XXXXXX") || stop 1 "${TMPDIR:-/var/tmp} cannot be written." "TMPDIR=FOLDER chooses another folder."
trap 'rm -rf "$scratch"' EXIT
check_host
image=$(registry_image) || stop 69 "$CLUSTER_FILE cannot be read." "Run this in a checkout of the project."
[[ $command == keygen ]] || place=$(absolute "${place%/}")
case $command in
  keygen) make_keys "$place" ;;
  export) do_export ;;
  verify) do_verify ;;
  import) do_import ;;
esac
