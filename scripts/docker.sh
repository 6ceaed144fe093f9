# shellcheck shell=bash
# shellcheck disable=SC2034  # what is set here is used by the scripts that source it
# Sourced by offline-setup.sh, bundle.sh and doctor.sh: Docker and this project's compose files, from a host that has only
# bash and docker.
#
# A check sets $detail to what it found and, if it returns 1, $fix to the fix.

readonly CLUSTER_FILE=docker-compose.gpu-cluster.yml
# gateway_mode_ipv4: isolated (a network on which the host has no address) needs Engine 28; `!reset`, which doctor.sh
# uses, needs Compose 2.24.4.
readonly MIN_ENGINE=28.0 MIN_COMPOSE=2.24.4
# Size of the unpacked images (vLLM's CUDA image is the largest by far), and room for logs and layers.
readonly IMAGES_GB=35 SPARE_GB=5
# The models of models.yaml have 19 GB together, the largest 15. Each is in the store and in the services' cache.
readonly MODELS_GB=40
# Time limit for minio and registry to become healthy.
readonly START_WAIT_S=300

# The compose file of the air-gapped cluster, with the site's override if it has one; and that of the machine with
# internet, or whatever COMPOSE_FILE names. Arrays, so that a command in the background is docker itself.
readonly CLUSTER=(docker compose -f "$CLUSTER_FILE" ${CLUSTER_OVERRIDE:+-f "$CLUSTER_OVERRIDE"})
readonly ONLINE=(docker compose)
cluster() { "${CLUSTER[@]}" "$@"; }
online() { "${ONLINE[@]}" "$@"; }

# version_at_least VERSION MINIMUM
version_at_least() {
  local have least i
  IFS=.+- read -r -a have <<<"${1#v}"
  IFS=. read -r -a least <<<"$2"
  for i in 0 1 2; do
    local h=${have[i]:-0} l=${least[i]:-0}
    [[ $h =~ ^[0-9]+$ ]] || h=0
    ((10#$h > 10#$l)) && return 0
    ((10#$h < 10#$l)) && return 1
  done
  return 0
}

check_docker() {
  local said version
  if ! command -v docker >/dev/null 2>&1; then
    detail='the program docker is not installed'
    fix='Install Docker Engine and its Compose plugin: https://docs.docker.com/engine/install/'
    return 1
  fi
  if ! said=$(docker version --format '{{.Server.Version}}' 2>&1); then
    detail=$(one_line "$said")
    case $said in
      *[Pp]ermission\ denied*) fix="This user may not use Docker: sudo usermod -aG docker ${USER:-\$USER}, then log in again." ;;
      *) fix='The Docker daemon does not respond: sudo systemctl start docker (or start Docker Desktop).' ;;
    esac
    return 1
  fi
  version=${said##*$'\n'}
  detail="engine $version"
  if ! version_at_least "$version" "$MIN_ENGINE"; then
    detail+=" is older than $MIN_ENGINE"
    fix='Install a newer Docker Engine: https://docs.docker.com/engine/install/'
    return 1
  fi
}

check_compose() {
  local version
  if ! version=$(docker compose version --short 2>/dev/null); then
    detail='docker has no Compose plugin'
    fix='Install the package docker-compose-plugin: https://docs.docker.com/compose/install/linux/'
    return 1
  fi
  detail="Compose $version"
  if ! version_at_least "$version" "$MIN_COMPOSE"; then
    detail+=" is older than $MIN_COMPOSE"
    fix='Install a newer docker-compose-plugin: https://docs.docker.com/compose/install/linux/'
    return 1
  fi
}

# Free bytes where Docker keeps images and volumes; nothing if this shell cannot see that folder.
free_bytes() {
  local root
  root=$(docker info --format '{{.DockerRootDir}}' 2>/dev/null) || return 1
  LC_ALL=C df -Pk "$root" 2>/dev/null | LC_ALL=C awk 'NR == 2 { printf "%.0f\n", $4 * 1024 }'
}

human() { # bytes as GB with one digit
  printf '%d.%d GB' $(($1 / 1000000000)) $(($1 % 1000000000 / 100000000))
}

# check_room BYTES PURPOSE
check_room() {
  local free
  free=$(free_bytes) || free=''
  if [[ -z $free ]]; then
    detail="free space of Docker's data folder is unknown; $(human "$1") needed $2"
    return 0
  fi
  detail="$(human "$free") free in Docker's data folder, $(human "$1") needed $2"
  if ((free < $1)); then
    fix="Free some space (docker image prune, docker builder prune), or move Docker to a larger disk (data-root in daemon.json)."
    return 1
  fi
}

# NVIDIA's driver and container toolkit. Sets gpus to the lines of `nvidia-smi -L`.
check_nvidia() {
  gpus=''
  if ! command -v nvidia-smi >/dev/null 2>&1; then
    detail='nvidia-smi is not installed'
    fix='Install the NVIDIA driver: https://docs.nvidia.com/datacenter/tesla/driver-installation-guide/'
    return 1
  fi
  if ! gpus=$(nvidia-smi -L 2>&1); then
    detail="nvidia-smi fails: $(one_line "$gpus")"
    fix='Reload or reinstall the NVIDIA driver; after an update of the kernel or driver, reboot.'
    gpus=''
    return 1
  fi
  detail="$(grep -c '^GPU ' <<<"$gpus" || true) GPUs"
  if ! has_toolkit; then
    detail+=', but Docker cannot pass them to containers'
    fix='Install nvidia-container-toolkit, then: sudo nvidia-ctk runtime configure --runtime=docker && sudo systemctl restart docker'
    return 1
  fi
}

# The engine has NVIDIA's runtime or hook, or device descriptions (CDI).
has_toolkit() {
  local known folder
  known=$(docker info --format '{{range $name, $_ := .Runtimes}}{{$name}} {{end}}' 2>/dev/null) || known=''
  [[ " $known " != *" nvidia "* ]] || return 0
  ! command -v nvidia-container-runtime-hook >/dev/null 2>&1 || return 0
  known=$(docker info --format '{{range .CDISpecDirs}}{{.}} {{end}}' 2>/dev/null) || known=''
  for folder in $known; do
    ! compgen -G "$folder/nvidia*" >/dev/null || return 0
  done
  return 1
}

# up_healthy COMMAND...: start minio and registry with that form of `docker compose` and wait until they are healthy.
# Compose gives up at once on a container that was unhealthy before, such as a registry whose store just came back: retry.
up_healthy() {
  local try
  for try in 1 2 3 4 5 6; do
    "$@" up --detach --wait --wait-timeout "$START_WAIT_S" minio registry && return
    ((try == 6)) || sleep 5
  done
  return 1
}

# plan cluster|online: the resolved compose file in lines for a shell, by kit.tools.compose_plan in the registry's image.
plan() {
  local image
  image=$(registry_image) && "$1" config --format json | docker run --rm -i --network none --entrypoint python "$image" -m kit.tools.compose_plan
}

# The registry's image as the cluster file names it; Compose prints its canonical form, so awk is enough.
registry_image() {
  local file
  file=$(cluster config) && awk '/^  [^ ]/ { service = $1 } service == "registry:" && $1 == "image:" { print $2; exit }' <<<"$file"
}

# planned FIELD PLAN: the lines of a plan that begin with FIELD, without it.
planned() {
  sed -n "s/^$1"$'\t'"//p" <<<"$2"
}

one_line() {
  tr -s '\n\t ' '   ' <<<"$*" | sed 's/ *$//'
}
